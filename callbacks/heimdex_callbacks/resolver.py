"""Looks up host names, in threads of its own: a name server that is slow, or a stranger's, holds up nothing else."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final

from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.runtime.outbound.address_policy import Address

#: For the calls. A silent name server keeps a thread for longer than its try may last; a tenant has half of a gateway's
#: 256 calls at most, so it cannot take them all.
CALLING_THREADS: Final = 512
#: For what is submitted, where a look-up is a courtesy.
SUBMITTING_THREADS: Final = 64
#: A name can have thousands, each of which is checked on the event loop.
MAX_ADDRESSES: Final = 64


class Unresolved(HeimdexError):
    """The name has no address now."""


class Resolver:
    """So many threads, which are begun when they are needed."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def addresses(self, host: str, port: int) -> list[Address]:
        """The addresses of the host: 1 to MOST_ADDRESSES, in the order in which to try them. Raises Unresolved."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _look_up, host, port)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unresolved(f"the host {host[:100]} has no address ({reason})") from None
        if not found:
            raise Unresolved(f"the host {host[:100]} has no address")
        return found

    def close(self) -> None:
        """Wait for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[Address]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # An address that is bound to an interface (fe80::1%eth0) keeps its zone, and is refused with it or without.
    return list(dict.fromkeys(ip_address(info[4][0]) for info in infos[:MAX_ADDRESSES]))
