"""Validates the callback_url of a submitted job.

This is a courtesy, so that a caller learns of a mistake at once. The protection is in `transport`, which checks every
connection.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from heimdex_callbacks.resolver import Resolver, Unresolved
from heimdex_callbacks.url import UnusableUrl, parse_url
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.runtime.outbound.address_policy import AddressForbidden, AddressPolicy

#: A host name that is not resolved within this time is accepted; it is checked when the callback is made.
LOOK_UP_SECONDS: Final = 1.0
_DISABLED: Final = (
    "cannot be used: callbacks are not enabled on this server (the operator enables them with HEIMDEX_CALLBACK_SECRET)"
)


class CallbackUrlRefused(HeimdexError):
    """Callbacks to this URL are not allowed; the text gives the reason. `field`: the request field with the URL."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"The field {field!r} {reason}.")
        self.field = field


class CallbackValidation:
    """Checks callback_urls for one gateway.

    `enabled`: whether this gateway accepts callback_urls at all. `look_up_seconds`: as LOOK_UP_SECONDS.
    """

    def __init__(
        self, enabled: bool, allowed: AddressPolicy, resolver: Resolver, look_up_seconds: float = LOOK_UP_SECONDS
    ) -> None:
        self.enabled = enabled
        self._allowed = allowed
        self._resolver = resolver
        self._look_up_seconds = look_up_seconds

    def read(self, value: object, field: str) -> str:
        """Check the URL without resolving its host, and return it. Raises CallbackUrlRefused."""
        if not self.enabled:
            raise CallbackUrlRefused(field, _DISABLED)
        try:
            receiver = parse_url(value)
            self._allowed.check_host(receiver.host)
        except (UnusableUrl, AddressForbidden) as error:
            raise CallbackUrlRefused(field, str(error)) from None
        return str(value)

    async def look_up(self, urls: Iterable[tuple[str, str]]) -> None:
        """Resolve the hosts of these pairs of field and URL, each host once.

        Raises CallbackUrlRefused if a host has an address that callbacks may not reach.
        """
        fields: dict[tuple[str, int], str] = {}
        for field, url in urls:
            receiver = parse_url(url)
            # A URL with an IP address as its host was checked by `read`.
            if self._allowed.check_host(receiver.host) is None and not self._allowed.knows(receiver.host):
                fields.setdefault((receiver.host, receiver.port), field)
        if fields:
            await asyncio.gather(*(self._look_up(host, port, field) for (host, port), field in fields.items()))

    async def _look_up(self, host: str, port: int, field: str) -> None:
        try:
            async with asyncio.timeout(self._look_up_seconds):
                addresses = await self._resolver.addresses(host, port)
            self._allowed.check_resolved(addresses)
        except AddressForbidden as error:
            raise CallbackUrlRefused(field, str(error)) from None
        except (Unresolved, TimeoutError):
            return  # the host may have an address by the time the job has finished
