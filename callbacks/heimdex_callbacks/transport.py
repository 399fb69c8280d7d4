"""Connects to a receiver: resolves its name, checks every address, and connects to a checked address.

A name may resolve to another address each time (DNS rebinding), so the check made when the job was submitted proves
nothing. The connection goes to the checked address itself; the name is not resolved a second time. What the receiver
sends over the connection is limited by a budget.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpcore

from heimdex_callbacks.metered_stream import MeteredStream, Shared
from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.response_budget import Budget
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy

#: Addresses tried one after the other, within the connect time-out.
MAX_ADDRESSES: Final = 3


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """The network backend of all callbacks. Raises AddressForbidden and Unresolved besides httpcore's own errors."""

    def __init__(
        self, allowed: AddressPolicy, resolver: Resolver, connector: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._allowed = allowed
        self._resolver = resolver
        self._connector = connector or httpcore.AnyIOBackend()
        # One thread makes some hundred handshakes a second, and leaves the other CPU cores to other work.
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
        """Connect to a checked address of the host.

        `timeout` is in seconds, for all addresses together; it does not include the look-up.
        """
        address = self._allowed.check_host(host)
        addresses = [address] if address is not None else await self._resolver.addresses(host, port)
        if address is None and not self._allowed.knows(host):
            self._allowed.check_resolved(addresses)
        candidates = addresses[:MAX_ADDRESSES]
        each = None if timeout is None else timeout / len(candidates)
        for number, candidate in enumerate(candidates, 1):
            try:
                wire = await self._connector.connect_tcp(str(candidate), port, each, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(candidates):
                    raise
            else:
                return MeteredStream(wire, Budget(), self._shared)
        raise AssertionError("a host that resolves has an address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Not supported: callbacks go over TCP. Raises NotImplementedError."""
        raise NotImplementedError("a callback goes over TCP")

    async def sleep(self, seconds: float) -> None:
        """Wait between httpcore's own retries. The pool is configured without retries, so this is never called."""
        await self._connector.sleep(seconds)

    def close(self) -> None:
        """Shut the handshake thread down without waiting for handshakes in progress."""
        self._threads.shutdown(wait=False, cancel_futures=True)
