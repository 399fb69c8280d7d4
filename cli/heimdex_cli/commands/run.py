"""`heimdex run`: the whole system on this machine until Ctrl-C, with its data in `.heimdex/` of the current folder."""

import os
import time
from contextlib import suppress
from pathlib import Path

from heimdex_cli.client import DEFAULT_URL
from heimdex_cli.embedded.system import EmbeddedSystem
from heimdex_cli.output.program_name import typed
from heimdex_cli.settings import addresses_for_run
from heimdex_cli.signals import StopRequests

DATA_FOLDER = ".heimdex"


def run(commands: Path | None = None) -> int:
    """Run the system until a signal requests the shutdown. Returns the exit code, 0.

    commands: the folder of the services' console scripts; by default that of the running Python.

    Raises Unusable for a setting that cannot be used, a port in use, or a data folder that another running system uses;
    ServerFailed or NotReady when the system does not start.
    """
    system = EmbeddedSystem(Path(DATA_FOLDER), addresses_for_run(), announce=announce, commands=commands)
    with StopRequests() as requests:
        try:
            system.start(requests.stop)
            if system.wait_until_ready(cancelled=requests.stop):
                announce(describe(system))
            while not requests.stop():
                time.sleep(0.1)
            announce("Stopping the services, then NATS and Postgres (press Ctrl-C again to kill them at once) ...")
        finally:
            system.stop(requests.hurry)
        announce("Every process has stopped.")
    return 0


def announce(sentence: str) -> None:
    """Print a line and flush it. Ignores a terminal that was closed, so that the shutdown stays orderly."""
    with suppress(OSError):
        print(sentence, flush=True)


def describe(system: EmbeddedSystem) -> str:
    """Return the addresses, the logs and the secrets of the system for the user who started it; several lines."""
    monitor = system.nats.monitor_url
    lines = [
        "",
        "Heimdex is ready.",
        f"  API        {system.url}   (try `{_command(system)} submit --watch` in another terminal)",
        f"  docs       {system.url}/schema",
        f"  events     nats --server nats://localhost:{system.nats.port} sub 'heimdex.jobs.>'",
        *([f"  NATS       {monitor}"] if monitor else []),
        f"  Postgres   {system.postgres.url}",
        f"  logs       {_shown(system.logs)}/",
        *_describe_callbacks(system),
        *_describe_keys(),
        "Press Ctrl-C to stop it.",
        "",
    ]
    return "\n".join(lines)


def _command(system: EmbeddedSystem) -> str:
    """Return the command that reaches this system from another terminal, whose HEIMDEX_URL is unknown here."""
    return typed() if system.url == DEFAULT_URL else f"HEIMDEX_URL={system.url} {typed()}"


def _describe_callbacks(system: EmbeddedSystem) -> list[str]:
    if not system.callback_secret_path.exists():
        return []  # HEIMDEX_CALLBACK_SECRET is set in the environment
    return [f"  callbacks  signed with the secret in {_shown(system.callback_secret_path)}"]


def _describe_keys() -> list[str]:
    if os.environ.get("HEIMDEX_API_KEYS"):
        return []
    return [f"  keys       none required: anyone who can reach the API can use it (`{typed()} key TENANT` creates one)"]


def _shown(path: Path) -> str:
    """Return the path relative to the current folder if it is below it, else the absolute path."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
