"""What a session in Postgres needs, whatever its role, its database or a pooler sets: said by the session itself.

In statements, as a pooler refuses or ignores most of what a connection asks for when it starts.
"""

from collections.abc import Mapping
from typing import Final

#: No time-out (0) may end what takes long, or rests, for a good reason. A statement's own is for the service to say.
#: The server, too, must notice that the other end is gone (`tcp_keepalive`): else a lost client keeps its locks, and
#: its place among `max_connections`, for two hours.
COMMON: Final[Mapping[str, str]] = {
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    # Of a transaction nothing is heard of between two statements that follow each other at once.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}


def setting(settings: Mapping[str, str], *, in_transaction: bool = False) -> str:
    """The SQL that makes these settings, for the session or for the transaction that is open.

    What this version of Postgres does not know is left out. The names and values must be the caller's own words.
    """
    wanted = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    return (
        f"SELECT set_config(name, wanted.value, {in_transaction}) "  # noqa: S608  # our own words
        f"FROM (VALUES {wanted}) AS wanted (name, value) JOIN pg_settings USING (name)"
    )


def milliseconds(seconds: float) -> str:
    """As Postgres takes a duration."""
    return f"{round(seconds * 1000)}ms"
