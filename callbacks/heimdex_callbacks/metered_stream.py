"""The connection of one try, as httpcore uses it, with a budget: plain, or under TLS.

TLS is done here, not by httpcore: the budget has to be spent below it too, since a receiver can send much there that
never becomes an answer; and the handshake costs what the receiver chooses, so a thread makes it, not the event loop.
"""

import asyncio
import re
import ssl
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final

import httpcore

from heimdex_callbacks.response_budget import Budget

#: Asked for in one read. One line of so many bytes is understood within half a millisecond.
READ_BYTES: Final = 4096
#: Of the receivers that send much, one is understood this often: it takes a tenth of the event loop's time.
TURN_SECONDS: Final = 0.005
#: In a ClientHello: a key for one of the groups ffdhe2048 to ffdhe8192. OpenSSL offers them all, and sends a key for
#: the one that the server asks for; the last costs the client 160 ms.
_FINITE_FIELD_KEY: Final = re.compile(
    rb"\x00\x33....\x01(?:\x00\x01\x00|\x01\x01\x80|\x02\x02\x00|\x03\x03\x00|\x04\x04\x00)", re.DOTALL
)


def without_finite_fields(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same context, without the ciphers of TLS 1.2 that let the server choose a group: up to 1 s of the CPU."""
    usual = context.get_ciphers()
    names = (cipher["name"] for cipher in usual if cipher["kea"] != "kx-dhe" and cipher["protocol"] != "TLSv1.3")
    context.set_ciphers(":".join(names))
    return context


@dataclass
class Shared:
    """What the connections of a gateway have in common. threads: for handshakes; turns: whose turn it is."""

    threads: Executor
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)


class MeteredStream(httpcore.AsyncNetworkStream):
    """Reads raise Overspent beside httpcore's own errors, once all that the budget allows was read."""

    def __init__(self, wire: httpcore.AsyncNetworkStream, budget: Budget, shared: Shared) -> None:
        self._wire = wire
        self._budget = budget
        self._shared = shared
        self._ahead = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """READ_BYTES at most; b"" at the end."""
        if not self._ahead:
            self._ahead = await self._receive(min(max_bytes, READ_BYTES), timeout)
            if not self._ahead:
                return b""
        await self._turn()
        data, self._ahead = self._budget.split(self._ahead)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it."""
        await self._wire.write(buffer, timeout)

    async def aclose(self) -> None:
        """Drop the connection."""
        await self._wire.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The connection under TLS, on the same budget. Closes this one where that fails."""
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
        """As httpcore's own streams have it."""
        return self._wire.get_extra_info(info)

    async def _turn(self) -> None:
        if self._budget.unusual:
            async with self._shared.turns:
                await asyncio.sleep(TURN_SECONDS)
        else:
            await asyncio.sleep(0)  # what is here already would be understood without a pause

    async def _receive(self, max_bytes: int, timeout: float | None) -> bytes:
        return self._budget.take(await self._wire.read(max_bytes, timeout))


class _TlsStream(MeteredStream):
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
        """Raises ssl.SSLError beside httpcore's own errors."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._shared.threads, self._tls.do_handshake)
            except ssl.SSLWantReadError:
                hello = self._outgoing.read()
                if _FINITE_FIELD_KEY.search(hello):
                    raise httpcore.ConnectError(
                        "it asks for a TLS key exchange over a finite field (ffdhe), not over an elliptic curve"
                    ) from None
                await self._wire.write(hello)
                if not await self._fill(None):
                    raise httpcore.ConnectError("it closed the connection during the TLS handshake") from None
            else:
                return await self._flush(None)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it."""
        left = memoryview(buffer)
        while left:
            left = left[self._tls.write(left) :]
        await self._flush(timeout)

    def get_extra_info(self, info: str) -> Any:
        """As httpcore's own streams have it."""
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
