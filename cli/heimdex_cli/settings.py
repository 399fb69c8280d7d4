"""The environment variables that `heimdex run` and `heimdex demo` read themselves; the services read their
own.
"""

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
    """Where the embedded system listens. A port of 0 means: choose a free one."""

    host: str = "127.0.0.1"
    port: int = 0
    nats_port: int = 0
    monitor_port: int | None = None
    """None: no HTTP monitoring."""

    @property
    def url(self) -> str:
        """The API's address, as a person on this machine types it."""
        return self.local_url.replace("://127.0.0.1:", "://localhost:")

    @property
    def local_url(self) -> str:
        """The API's address without a name to look up: `localhost` may mean ::1 first."""
        # "Any address" is a place to listen, not one to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def addresses_for_run(environ: Mapping[str, str] = os.environ) -> Addresses:
    """The fixed ports of `heimdex run`. Raises Unusable, naming the variable."""
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
    """Free ports, but HEIMDEX_PORT where it is set. Raises Unusable, naming the variable."""
    return Addresses(host=environ.get("HEIMDEX_HOST") or "127.0.0.1", port=_port(environ, API_PORT, 0))


def shutdown_grace_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """How long the services have to end. Raises Unusable, naming the variable."""
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
        raise Unusable(f"{name}={text!r} is not a port: a whole number from {lowest} to 65535 is needed.")
    return int(text)
