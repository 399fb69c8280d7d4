"""Looks up host names, in threads of its own: a name server that is slow, or a stranger's, holds up nothing else."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final

from heimdex_contracts.errors import HeimdexError
from heimdex_gateway.callbacks.allowed import Address

#: Several times what one receiver may be called at once, so that one with a slow name server does not take them all.
THREADS: Final = 64


class Unresolved(HeimdexError):
    """The name has no address now."""


class Resolver:
    """Of one gateway."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolve")

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Every address of the host, at least one, in the order in which to try them. Raises Unresolved."""
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
    return list(dict.fromkeys(ip_address(info[4][0]) for info in infos))
