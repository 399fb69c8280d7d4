"""Connects to a receiver: looks its name up, checks every address, and connects to one that was checked.

A name may tell another address each time it is asked (DNS rebinding), so what was checked when the job was submitted
says nothing; and what is connected to here is the address itself, never the name again. What comes over the connection
is held to a budget.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpcore

from heimdex_callbacks.metered_stream import MeteredStream, Shared
from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.response_budget import Budget
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy

#: Addresses tried one after the other, within the time that one connection may take.
MAX_ADDRESSES: Final = 3


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """The only way out for callbacks. Raises Forbidden and Unresolved beside httpcore's own errors."""

    def __init__(
        self, allowed: AddressPolicy, resolver: Resolver, connector: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._allowed = allowed
        self._resolver = resolver
        self._connector = connector or httpcore.AnyIOBackend()
        # One is enough for some hundred handshakes a second, and leaves the other processors to the others.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="tls")
        self._shared = Shared(self._threads)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """`timeout` in seconds, for all of it but the look-up."""
        address = self._allowed.check_host(host)
        addresses = [address] if address is not None else await self._resolver.addresses(host, port)
        if address is None and not self._allowed.knows(host):
            self._allowed.check_found(addresses)
        tried = addresses[:MAX_ADDRESSES]
        each = None if timeout is None else timeout / len(tried)
        for number, found in enumerate(tried, 1):
            try:
                wire = await self._connector.connect_tcp(str(found), port, each, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(tried):
                    raise
            else:
                return MeteredStream(wire, Budget(), self._shared)
        raise AssertionError("a host that resolves has an address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise NotImplementedError("a callback goes over TCP")

    async def sleep(self, seconds: float) -> None:
        """Between httpcore's own retries, of which there are none."""
        await self._connector.sleep(seconds)

    def close(self) -> None:
        """Wait for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)
