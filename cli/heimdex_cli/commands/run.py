"""`heimdex run`: the whole system on this machine until Ctrl-C, its data under `.heimdex/` of the current
folder.
"""

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
    """Returns the exit code: 0 when it was asked to end.

    commands: the folder with the services' console scripts; by default the one this Python runs from.

    Raises Unusable for a setting that cannot be used, a taken port, or a folder whose system runs already;
    ServerFailed or NotReady when it does not come up.
    """
    system = EmbeddedSystem(Path(DATA_FOLDER), addresses_for_run(), announce=announce, commands=commands)
    with StopRequests() as requests:
        try:
            system.start(requests.stop)
            if system.wait_until_ready(cancelled=requests.stop):
                announce(describe(system))
            while not requests.stop():
                time.sleep(0.1)
            announce("Ending the services, then NATS and Postgres (Ctrl-C once more: at once) ...")
        finally:
            system.stop(requests.hurry)
        announce("Everything has ended.")
    return 0


def announce(sentence: str) -> None:
    """Print a line now. A terminal that was closed meanwhile is no reason to end in disorder."""
    with suppress(OSError):
        print(sentence, flush=True)


def describe(system: EmbeddedSystem) -> str:
    """Where everything is, for the person who started it; several lines."""
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
        *_callbacks(system),
        *_open(),
        "Ctrl-C ends it.",
        "",
    ]
    return "\n".join(lines)


def _command(system: EmbeddedSystem) -> str:
    """The command as it finds this system from another terminal, whose HEIMDEX_URL is not known here."""
    return typed() if system.url == DEFAULT_URL else f"HEIMDEX_URL={system.url} {typed()}"


def _callbacks(system: EmbeddedSystem) -> list[str]:
    if not system.callback_secret_path.exists():
        return []  # the environment has a secret of its own
    return [f"  callbacks  signed with the secret in {_shown(system.callback_secret_path)}"]


def _open() -> list[str]:
    if os.environ.get("HEIMDEX_API_KEYS"):
        return []
    return [f"  keys       none is asked for: whoever reaches the API may use it (`{typed()} key TENANT` makes one)"]


def _shown(path: Path) -> str:
    """Relative where that is shorter to read."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
