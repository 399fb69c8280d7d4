"""Host name look-ups in a thread pool of their own, so that a slow or hostile name server blocks nothing else."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final

from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.runtime.outbound.address_policy import Address

#: Pool size for calls. A silent name server occupies a thread for longer than the attempt's time-out; a tenant has at
#: most half of a gateway's 256 concurrent calls, so one tenant cannot occupy all threads.
CALLING_THREADS: Final = 512
#: Pool size for submitted jobs, where the look-up is only a courtesy.
SUBMITTING_THREADS: Final = 64
#: Addresses used of one name. A name can have thousands, and each is checked on the event loop.
MAX_ADDRESSES: Final = 64


class Unresolved(HeimdexError):
    """The host name has no address at present."""


class Resolver:
    """Looks up host names in up to `threads` threads, which are started on demand."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def addresses(self, host: str, port: int) -> list[Address]:
        """The addresses of the host, 1 to MAX_ADDRESSES, in the order in which to try them. Raises Unresolved."""
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.run_in_executor(self._threads, _look_up, host, port)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unresolved(f"the host {host[:100]} has no address ({reason})") from None
        if not addresses:
            raise Unresolved(f"the host {host[:100]} has no address")
        return addresses

    def close(self) -> None:
        """Shut the thread pool down without waiting for look-ups in progress."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[Address]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # An address that is bound to an interface (fe80::1%eth0) keeps its zone; it is refused with or without the zone.
    return list(dict.fromkeys(ip_address(info[4][0]) for info in infos[:MAX_ADDRESSES]))
