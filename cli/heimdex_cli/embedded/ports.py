"""Chooses free TCP ports and tests whether a port is in use, for the embedded servers and the start of the system."""

import errno
import random
import socket

from heimdex_cli.errors import Unusable

# Below the ranges from which kernels pick the local port of an outgoing connection (Linux 32768, macOS
# 49152): such a connection could otherwise occupy a server's port while that server restarts.
_CHOICE = range(20_000, 32_000)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nothing listens now.

    Another process may take the port before the caller does: a server that needs a port must retry with another one.
    Raises Unusable when 200 random ports are in use, or nothing can listen on this host.
    """
    for _ in range(200):
        port = random.choice(_CHOICE)  # noqa: S311 - not a secret
        if not is_taken(host, port):
            return port
    raise Unusable(f"No free TCP port was found on {host} between {_CHOICE.start} and {_CHOICE.stop}.")


def is_taken(host: str, port: int) -> bool:
    """Whether a server cannot listen on this port because another one does.

    Raises Unusable when it cannot for another reason: an unknown host, a privileged port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port that has only closing connections (TIME_WAIT) is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise Unusable(f"Nothing can listen on {host} port {port}: {error.strerror}.") from error
    return False
