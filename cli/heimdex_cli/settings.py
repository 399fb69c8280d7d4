"""The environment variables that `heimdex run` and `heimdex demo` read; each service reads its own."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from heimdex_cli.errors import Unusable

API_PORT = "HEIMDEX_PORT"
NATS_PORT = "HEIMDEX_EMBEDDED_NATS_PORT"
MONITOR_PORT = "HEIMDEX_EMBEDDED_NATS_MONITOR_PORT"
GRACE = "HEIMDEX_SHUTDOWN_GRACE_SECONDS"


@dataclass(frozen=True)
class Addresses:
    """The addresses on which the embedded system listens. Port 0 means that a free port is chosen at the start."""

    host: str = "127.0.0.1"
    port: int = 0
    nats_port: int = 0
    monitor_port: int | None = None
    """None means no HTTP monitoring."""

    @property
    def url(self) -> str:
        """The API's URL for a user on this machine, with `localhost` in place of 127.0.0.1."""
        return self.local_url.replace("://127.0.0.1:", "://localhost:")

    @property
    def local_url(self) -> str:
        """The API's URL with an IP address: `localhost` may resolve to ::1 first."""
        # A server can listen on the wildcard address, but a client cannot connect to it.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def addresses_for_run(environ: Mapping[str, str] = os.environ) -> Addresses:
    """Read the addresses of `heimdex run`, with its fixed default ports.

    Raises Unusable, naming the variable, for an invalid port or when two variables have the same port.
    """
    chosen = Addresses(
        host=environ.get("HEIMDEX_HOST") or "127.0.0.1",
        port=_port(environ, API_PORT, 8000),
        nats_port=_port(environ, NATS_PORT, 4222),
        monitor_port=_port(environ, MONITOR_PORT, 8222, zero_means_none=True) or None,
    )
    names: dict[int, str] = {}
    for name, port in (
        (API_PORT, chosen.port),
        (NATS_PORT, chosen.nats_port),
        (MONITOR_PORT, chosen.monitor_port),
    ):
        if port in names:
            raise Unusable(f"{names[port]} and {name} are both {port}: choose two different ports.")
        if port is not None:
            names[port] = name
    return chosen


def addresses_for_demo(environ: Mapping[str, str] = os.environ) -> Addresses:
    """Read the addresses of `heimdex demo`: free ports, except for HEIMDEX_PORT if it is set.

    Raises Unusable, naming the variable, for an invalid port.
    """
    return Addresses(host=environ.get("HEIMDEX_HOST") or "127.0.0.1", port=_port(environ, API_PORT, 0))


def shutdown_grace_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Read how long, in seconds, the services may take to shut down.

    Raises Unusable, naming the variable, unless it is a finite number that is not negative.
    """
    text = environ.get(GRACE) or "10"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise Unusable(f"{GRACE}={text!r} is not a number of seconds.")
    return seconds


def _port(environ: Mapping[str, str], name: str, default: int, *, zero_means_none: bool = False) -> int:
    text = environ.get(name)
    if not text:
        return default
    lowest = 0 if zero_means_none else 1
    if not (text.isascii() and text.isdigit() and lowest <= int(text) <= 65_535):
        raise Unusable(f"{name}={text!r} is not a port: use a whole number from {lowest} to 65535.")
    return int(text)
