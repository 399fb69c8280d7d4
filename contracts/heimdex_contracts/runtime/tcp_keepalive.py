"""TCP connections whose other end is gone without a word (a host lost, a NAT's table flushed) end within 5 s.

Without this, the kernel waits for 15 minutes for an acknowledgement, and for ever where nothing is on its way. Only the
two kernels talk here: a server that is busy, or waits for a lock, acknowledges all the same.
"""

import contextlib
import socket
from typing import Any, Final

#: Without a packet from the other end, whatever was sent to it. Three probes fit in: a lost packet ends nothing.
DEAD_AFTER_SECONDS: Final = 4
PROBES: Final = 3

#: Where the platform has them. TCP_KEEPALIVE is what macOS calls TCP_KEEPIDLE.
_OPTIONS: Final = {
    "TCP_KEEPIDLE": 1,
    "TCP_KEEPALIVE": 1,
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": PROBES,
    # Keepalive is silent while something sent is not acknowledged; this is not.
    "TCP_USER_TIMEOUT": DEAD_AFTER_SECONDS * 1000,
}


def notice_death(link: Any) -> None:
    """Let the kernel end this connection once its other end is gone. `link`: a socket, or an event loop's stand-in.

    A unix socket is left as it is: its other end is on this machine, and says that it is gone.
    """
    if link is None or link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            # A kernel that does not know what its headers name, or a link that has just broken.
            with contextlib.suppress(OSError):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
