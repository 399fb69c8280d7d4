"""The network stream of one attempt, plain or TLS, for httpcore, with a budget for what the receiver sends.

TLS is implemented here instead of by httpcore for two reasons. The budget must also limit the bytes below TLS, where a
receiver can send much that never becomes part of a response. And the receiver chooses how much CPU time the handshake
costs, so it runs in a thread, not on the event loop.
"""

import asyncio
import re
import ssl
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final

import httpcore

from heimdex_callbacks.response_budget import Budget

#: The maximum size of one read. A single line of this length is parsed within half a millisecond.
READ_BYTES: Final = 4096
#: Of all receivers that send more than usual, one is parsed per this interval. This takes a tenth of the event loop's
#: time.
TURN_SECONDS: Final = 0.005
#: In a ClientHello: a key share for one of the groups ffdhe2048 to ffdhe8192. OpenSSL offers all of these groups, and
#: sends a key share for the one that the server requests; for ffdhe8192 this costs the client 160 ms.
_FINITE_FIELD_KEY_SHARE: Final = re.compile(
    rb"\x00\x33....\x01(?:\x00\x01\x00|\x01\x01\x80|\x02\x02\x00|\x03\x03\x00|\x04\x04\x00)", re.DOTALL
)


def without_finite_fields(context: ssl.SSLContext) -> ssl.SSLContext:
    """Remove the TLS 1.2 ciphers with a finite-field key exchange (DHE) from the context, and return it.

    They let the server choose the group, which can cost the client up to 1 s of CPU time.
    """
    ciphers = context.get_ciphers()
    names = (cipher["name"] for cipher in ciphers if cipher["kea"] != "kx-dhe" and cipher["protocol"] != "TLSv1.3")
    context.set_ciphers(":".join(names))
    return context


@dataclass
class Shared:
    """State that all connections of a gateway share.

    threads: the pool for TLS handshakes; turns: held by the connection whose turn it is to be parsed.
    """

    threads: Executor
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)


class MeteredStream(httpcore.AsyncNetworkStream):
    """Limits the reads of a connection to a budget.

    After everything that the budget allows was read, reads raise Overspent; they also raise httpcore's own errors.
    """

    def __init__(self, wire: httpcore.AsyncNetworkStream, budget: Budget, shared: Shared) -> None:
        self._wire = wire
        self._budget = budget
        self._shared = shared
        self._ahead = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read at most READ_BYTES. Returns b"" when the receiver has closed the connection."""
        if not self._ahead:
            self._ahead = await self._receive(min(max_bytes, READ_BYTES), timeout)
            if not self._ahead:
                return b""
        await self._turn()
        data, self._ahead = self._budget.split(self._ahead)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send the whole buffer."""
        await self._wire.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._wire.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Start TLS and return the encrypted stream, which shares this stream's budget.

        Closes this stream if that fails. Raises httpcore.ConnectTimeout after `timeout` seconds, and what
        `_TlsStream.shake_hands` raises.
        """
        stream = _TlsStream(self._wire, self._budget, self._shared, ssl_context, server_hostname)
        try:
            async with asyncio.timeout(timeout):
                await stream.shake_hands()
        except TimeoutError:
            await self.aclose()
            raise httpcore.ConnectTimeout from None
        except BaseException:
            await self.aclose()
            raise
        return stream

    def get_extra_info(self, info: str) -> Any:
        """Return the same information as httpcore's own streams."""
        return self._wire.get_extra_info(info)

    async def _turn(self) -> None:
        if self._budget.unusual:
            async with self._shared.turns:
                await asyncio.sleep(TURN_SECONDS)
        else:
            await asyncio.sleep(0)  # otherwise data that has already arrived is parsed without yielding to other tasks

    async def _receive(self, max_bytes: int, timeout: float | None) -> bytes:
        return self._budget.take(await self._wire.read(max_bytes, timeout))


class _TlsStream(MeteredStream):
    """A metered stream under TLS, with the TLS engine in memory between it and the connection."""

    def __init__(
        self,
        wire: httpcore.AsyncNetworkStream,
        budget: Budget,
        shared: Shared,
        context: ssl.SSLContext,
        server_hostname: str | None,
    ) -> None:
        super().__init__(wire, budget, shared)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)

    async def shake_hands(self) -> None:
        """Make the TLS handshake in a thread. Raises ssl.SSLError, and httpcore's own errors.

        A receiver that requests a finite-field key exchange is refused with httpcore.ConnectError.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._shared.threads, self._tls.do_handshake)
            except ssl.SSLWantReadError:
                hello = self._outgoing.read()
                if _FINITE_FIELD_KEY_SHARE.search(hello):
                    raise httpcore.ConnectError(
                        "it asks for a TLS key exchange over a finite field (ffdhe), not over an elliptic curve"
                    ) from None
                await self._wire.write(hello)
                if not await self._fill(None):
                    raise httpcore.ConnectError("it closed the connection during the TLS handshake") from None
            else:
                return await self._flush(None)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send the whole buffer."""
        unsent = memoryview(buffer)
        while unsent:
            unsent = unsent[self._tls.write(unsent) :]
        await self._flush(timeout)

    def get_extra_info(self, info: str) -> Any:
        """Return the same information as httpcore's own streams; "ssl_object" is the TLS object of this stream."""
        return self._tls if info == "ssl_object" else super().get_extra_info(info)

    async def _receive(self, max_bytes: int, timeout: float | None) -> bytes:
        while True:
            try:
                return self._tls.read(max_bytes)
            except ssl.SSLWantReadError:
                await self._flush(timeout)
                if not await self._fill(timeout):
                    return b""

    async def _fill(self, timeout: float | None) -> int:
        self._budget.piece()
        return self._incoming.write(await super()._receive(READ_BYTES, timeout))

    async def _flush(self, timeout: float | None) -> None:
        if self._outgoing.pending:
            await self._wire.write(self._outgoing.read(), timeout)
