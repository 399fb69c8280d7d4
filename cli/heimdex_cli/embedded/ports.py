"""Choose a free TCP port, and say whether a port is taken; the embedded servers and the system's start-up
ask.
"""

import errno
import random
import socket

from heimdex_cli.errors import Unusable

# Below the ranges from which kernels pick the local port of an outgoing connection (Linux 32768, macOS
# 49152): such a connection could otherwise sit on a server's port while that server restarts.
_CHOICE = range(20_000, 32_000)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now. Another process may still take it: a server that must have one
    retries.
    """
    for _ in range(200):
        port = random.choice(_CHOICE)  # noqa: S311 - not a secret
        if not is_taken(host, port):
            return port
    raise Unusable(f"No free TCP port was found on {host} between {_CHOICE.start} and {_CHOICE.stop}.")


def is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there because another one does.

    Raises Unusable when it could not listen there for another reason: no such host, a privileged port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port with nothing but closing connections (TIME_WAIT) is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise Unusable(f"Nothing can listen on {host} port {port}: {error.strerror}.") from error
    return False
