"""A gateway that resolves every name below `example` to 127.0.0.1, and never gets a response for `*.silent.example`."""

import socket
import threading
from typing import Any

from heimdex_gateway.main import main

look_up = socket.getaddrinfo


def made_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
    """Resolve a name as the system does, except for the names of the tests."""
    if str(host).endswith(".silent.example"):
        threading.Event().wait()
    return look_up("127.0.0.1" if str(host).endswith(".example") else host, port, *args, **kwargs)


socket.getaddrinfo = made_up
main()
