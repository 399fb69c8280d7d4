"""A request that is refused: what schemas, routes and middleware raise, and the body that every error has."""

from typing import Any

import msgspec


class Problem(Exception):
    """An error response raised by a route or a schema. `extra` holds further keys of the body, beside `detail`."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error response. `field` names the invalid part of the request, if a part of it is invalid."""

    detail: str
    field: str | None = None
