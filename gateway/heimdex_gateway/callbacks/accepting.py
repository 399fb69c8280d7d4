"""Which callback_urls a gateway takes when a job is submitted: 422 for the others, naming the field.

A courtesy, to tell a caller at once; the guard is `connecting`, which asks again for every connection.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from heimdex_gateway.callbacks import urls
from heimdex_gateway.callbacks.allowed import Allowed, Forbidden
from heimdex_gateway.callbacks.resolving import Resolver, Unresolved
from heimdex_gateway.callbacks.urls import UnusableUrl
from heimdex_gateway.errors import Problem

#: A name that is not looked up within this time is taken: it is checked when it is called.
LOOK_UP_SECONDS: Final = 1.0
_DISABLED: Final = (
    "cannot be used here: callbacks are not enabled (the operator sets HEIMDEX_CALLBACK_SECRET to enable them)"
)


class Acceptance:
    """Of one gateway. `enabled`: whether it takes any."""

    def __init__(self, enabled: bool, allowed: Allowed, resolver: Resolver) -> None:
        self.enabled = enabled
        self._allowed = allowed
        self._resolver = resolver

    def read(self, value: object, field: str) -> str:
        """The URL, as far as can be told without looking its host up. Raises Problem."""
        if not self.enabled:
            raise _wrong(field, _DISABLED)
        try:
            receiver = urls.read(value)
            self._allowed.check_host(receiver.host)
        except (UnusableUrl, Forbidden) as error:
            raise _wrong(field, str(error)) from None
        return str(value)

    async def look_up(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Look up the hosts of these (field, URL). Raises Problem for one that leads where no callback may go."""
        fields: dict[tuple[str, int], str] = {}
        for field, url in wanted:
            receiver = urls.read(url)
            # An address was checked when it was read.
            if self._allowed.check_host(receiver.host) is None and not self._allowed.knows(receiver.host):
                fields.setdefault((receiver.host, receiver.port), field)
        if fields:
            await asyncio.gather(*(self._look_up(*place, field) for place, field in fields.items()))

    async def _look_up(self, host: str, port: int, field: str) -> None:
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                found = await self._resolver.addresses(host, port)
            self._allowed.check_found(found)
        except Forbidden as error:
            raise _wrong(field, str(error)) from None
        except (Unresolved, TimeoutError):
            return  # it may have an address by the time that the job ends


def _wrong(field: str, what: str) -> Problem:
    return Problem(422, f"The field {field!r} {what}.", field=field)
