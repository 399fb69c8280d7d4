"""A request that is refused: what schemas, routes and middleware raise, and the body that every error has."""

from typing import Any

import msgspec


class Problem(Exception):
    """An answer other than the one that was asked for; further keys stand beside `detail`."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every error answers. `field` names the part of the request that is wrong, where one is."""

    detail: str
    field: str | None = None
