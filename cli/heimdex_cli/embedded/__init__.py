"""The whole system on one machine without containers: NATS, Postgres and the services as child processes.

`heimdex run` and `heimdex demo` start it; the tests use its parts as fixtures.
"""

from heimdex_cli.embedded.nats_server import EmbeddedNats
from heimdex_cli.embedded.postgres import EmbeddedPostgres
from heimdex_cli.embedded.system import EmbeddedSystem

__all__ = ["EmbeddedNats", "EmbeddedPostgres", "EmbeddedSystem"]
