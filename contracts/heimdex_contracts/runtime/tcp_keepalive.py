"""Closes TCP connections within 5 s when the peer has vanished (a lost host, a flushed NAT table).

Without keepalives, the kernel waits 15 minutes for an acknowledgement, and for ever when no data is in flight. The
peer's kernel answers the probes: a server that is busy or waits for a lock keeps its connection.
"""

import contextlib
import socket
from typing import Any, Final

#: The connection is closed after this long without a packet from the peer. Three probes fit into it, so that one lost
#: packet does not close the connection.
DEAD_AFTER_SECONDS: Final = 4
PROBES: Final = 3

#: Socket options, set where the platform has them. TCP_KEEPALIVE is macOS's name for TCP_KEEPIDLE.
_OPTIONS: Final = {
    "TCP_KEEPIDLE": 1,
    "TCP_KEEPALIVE": 1,
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": PROBES,
    # The kernel sends no keepalive probes while sent data is unacknowledged; this time-out covers that case.
    "TCP_USER_TIMEOUT": DEAD_AFTER_SECONDS * 1000,
}


def notice_death(link: Any) -> None:
    """Make the kernel close this connection once its peer has vanished.

    link: a socket or an event loop's transport socket. Nothing is done for a Unix socket: its peer is on the same
    machine, whose kernel closes the connection when the peer dies.
    """
    if link is None or link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            # The kernel may not support an option that its headers define, or the connection may have just broken.
            with contextlib.suppress(OSError):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
