"""The parameters that every Postgres session sets itself, whatever its role, its database or a pooler sets.

The session sets them with statements, because a pooler rejects or ignores most startup parameters.
"""

from collections.abc import Mapping
from typing import Final

#: Time-outs are off (0), because some statements are slow and some sessions idle for a good reason. Each service sets
#: its own statement time-out. The keepalives let the server detect a lost client too (see `tcp_keepalive`): otherwise
#: such a client keeps its locks and its slot in `max_connections` for two hours.
COMMON: Final[Mapping[str, str]] = {
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    # Our transactions run their statements back to back, so one that is idle for 60 s belongs to a client that hangs.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}


def setting(settings: Mapping[str, str], *, in_transaction: bool = False) -> str:
    """Return the SQL that sets these parameters, for the session or for the current transaction.

    The SQL skips parameters that the server's version does not know. It does not escape names and values: they must be
    constants of the caller, never input.
    """
    parameters = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    return (
        f"SELECT set_config(name, parameter.value, {in_transaction}) "  # noqa: S608  # constants only
        f"FROM (VALUES {parameters}) AS parameter (name, value) JOIN pg_settings USING (name)"
    )


def milliseconds(seconds: float) -> str:
    """Format seconds as a Postgres duration in whole milliseconds."""
    return f"{round(seconds * 1000)}ms"
