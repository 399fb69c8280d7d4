"""Which callback_urls are accepted when a job is submitted.

A courtesy, so that a caller learns of a mistake at once; the guard is `transport`, which checks every connection.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from heimdex_callbacks.resolver import Resolver, Unresolved
from heimdex_callbacks.url import UnusableUrl, parse_url
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.runtime.outbound.address_policy import AddressForbidden, AddressPolicy

#: A name that is not looked up within this time is taken: it is checked when it is called.
LOOK_UP_SECONDS: Final = 1.0
_DISABLED: Final = (
    "cannot be used here: callbacks are not enabled (the operator sets HEIMDEX_CALLBACK_SECRET to enable them)"
)


class CallbackUrlRefused(HeimdexError):
    """A callback may not be sent there; the text says why. `field`: where the caller gave the URL."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"The field {field!r} {what}.")
        self.field = field


class CallbackValidation:
    """Of one gateway. `enabled`: whether it takes any."""

    def __init__(self, enabled: bool, allowed: AddressPolicy, resolver: Resolver) -> None:
        self.enabled = enabled
        self._allowed = allowed
        self._resolver = resolver

    def read(self, value: object, field: str) -> str:
        """The URL, as far as can be told without looking its host up. Raises CallbackUrlRefused."""
        if not self.enabled:
            raise CallbackUrlRefused(field, _DISABLED)
        try:
            receiver = parse_url(value)
            self._allowed.check_host(receiver.host)
        except (UnusableUrl, AddressForbidden) as error:
            raise CallbackUrlRefused(field, str(error)) from None
        return str(value)

    async def look_up(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Look up the hosts of these (field, URL). Raises CallbackUrlRefused for one that no callback may reach."""
        fields: dict[tuple[str, int], str] = {}
        for field, url in wanted:
            receiver = parse_url(url)
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
        except AddressForbidden as error:
            raise CallbackUrlRefused(field, str(error)) from None
        except (Unresolved, TimeoutError):
            return  # it may have an address by the time that the job ends
