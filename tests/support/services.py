"""The real services as processes: starts, freezes and kills their console scripts, and reads their logs.

`System` starts them, and kills every process that it has started, by pid. A service is named `gateway`, `status-store`
or after its stage.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from heimdex_cli.embedded.ports import free_port
from heimdex_cli.embedded.watchdog import WATCHDOG, ChildRecord
from tests.support.auditor import Auditor, Line
from tests.support.waiting import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = Path(__file__).parent / "launchers"
MOCK_STAGES = ("extracting", "analyzing", "indexing")

#: Settings for tests that do not depend on real times: no simulated work, short retry delays, short leases.
QUICK = {
    "HEIMDEX_MOCK_TIME_SCALE": "0",
    "HEIMDEX_RETRY_BACKOFF_SECONDS": "0.1,0.1,0.1",
    "HEIMDEX_ACK_WAIT_SECONDS": "2",
    "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "5",
}


def command(service: str, scripts: Path | None = None) -> list[str]:
    """Return the command of a service: its console script in the folder `scripts`, by default beside this Python."""
    folder = scripts or Path(sys.executable).parent
    match service:
        case "gateway" | "status-store":
            return [str(folder / f"heimdex-{service}")]
        case stage:
            return [str(folder / "heimdex-stage-worker"), stage]


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without settings of the services, and with the tests importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEIMDEX_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


class Service:
    """One process of a service, which starts when the object is created."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log_path: Path) -> None:
        self.name = name
        self.argv = argv
        self.env = dict(env)
        self.log_path = log_path
        self.told_to_stop = False
        #: The number of bytes of the log that `unread` has returned.
        self._read = 0
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        # If the tests are killed, the watchdog ends every process that they have started.
        WATCHDOG.watch(ChildRecord(self.process.pid, time.time(), signal.SIGKILL, 1.0, 0))

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid}>"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stderr(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Every complete line as an object; a line that is not a JSON object as {"event": "not_json", "line": ...}."""
        return _entries(self.stderr.split("\n")[:-1])

    def unread(self) -> list[dict[str, Any]]:
        """Return the entries of the complete lines that were logged since the last call."""
        with self.log_path.open("rb") as log:
            log.seek(self._read)
            complete, newline, _ = log.read().rpartition(b"\n")
        self._read += len(complete) + len(newline)
        return _entries(complete.decode(errors="replace").split("\n")) if newline else []

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log entries of this event with these fields."""
        return [
            entry
            for entry in self.logs
            if entry.get("event") == event and all(entry.get(name) == value for name, value in fields.items())
        ]

    async def wait_log(
        self, event: str, timeout: float = PATIENCE_SECONDS, count: int = 1, **fields: Any
    ) -> dict[str, Any]:
        """Wait until there are `count` log entries of this event with these fields, and return the newest.

        Raises RuntimeError when the process ends first.
        """

        def enough() -> list[dict[str, Any]]:
            entries = self.logged(event, **fields)
            if len(entries) >= count:
                return entries
            if not self.running:
                raise RuntimeError(f"{self} ended with {self.process.poll()} before it logged {event}:\n{self.stderr}")
            return []

        return (await eventually(enough, timeout, lambda: f"{self} logs {event} {fields}; its log:\n{self.stderr}"))[-1]

    def kill(self) -> None:
        """Kill the process with SIGKILL, as a crash would end it."""
        self._send(signal.SIGKILL)
        self.process.wait()
        WATCHDOG.forget(self.pid)

    def freeze(self) -> None:
        """Stop the process with SIGSTOP: it exists and its connections stay open, but it does not respond."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process continue, with SIGCONT."""
        self._send(signal.SIGCONT)

    def ask_to_stop(self, number: int = signal.SIGTERM) -> None:
        """Send SIGTERM, or another signal that stops a service, and return at once."""
        self.told_to_stop = True
        self._send(number)

    async def ended(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Wait until the process ends. Returns its exit code, or the negative signal number when a signal ended it."""
        await eventually(lambda: not self.running, timeout, lambda: f"{self} ends; its log:\n{self.stderr}")
        WATCHDOG.forget(self.pid)
        return self.process.wait()

    async def terminate(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Send SIGTERM, wait until the process ends, and return its exit code."""
        self.ask_to_stop()
        return await self.ended(timeout)

    def _send(self, number: int) -> None:
        if self.running:
            self.process.send_signal(number)


def _entries(lines: list[str]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entries.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError:
            entries.append({"event": "not_json", "line": line})
    return entries


class System:
    """The services of one NATS and one Postgres. A service runs only when the test starts it.

    env: settings in addition to QUICK, for every service that is started from now on; None removes a variable.
    """

    def __init__(
        self, nats_url: str, database_url: str, folder: Path, env: Mapping[str, str | None] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.env: dict[str, str | None] = {
            "HEIMDEX_NATS_URL": nats_url,
            "HEIMDEX_DATABASE_URL": database_url,
            "HEIMDEX_LOG_LEVEL": "debug",
            **QUICK,
            **(env or {}),
        }
        self.services: list[Service] = []
        self._auditor = Auditor()

    @property
    def url(self) -> str:
        """The URL of the gateway on the system's own port."""
        return f"http://127.0.0.1:{self.port}"

    def __getitem__(self, name: str) -> Service:
        """Return the process of this service that was started last."""
        return [service for service in self.services if service.name == name][-1]

    def all(self, name: str) -> list[Service]:
        """Return the running processes of this service, in the order of their start."""
        return [service for service in self.services if service.name == name and service.running]

    def start(
        self,
        name: str,
        env: Mapping[str, str | None] | None = None,
        launcher: Path | None = None,
        port: int | None = None,
        scripts: Path | None = None,
    ) -> Service:
        """Start another process of this service, and return at once.

        launcher: a Python script to run instead; it gets the console script's arguments and calls the same `main`.
        port: the port of a gateway; by default the system's own.
        scripts: the folder with the console scripts of another release.
        """
        variables: dict[str, str | None] = {**clean_environment(), **self.env, **(env or {})}
        if name == "gateway":
            variables["HEIMDEX_PORT"] = str(port or self.port)
        argv = command(name, scripts)
        if launcher is not None:
            argv = [sys.executable, str(launcher), *argv[1:]]
        environment = {key: value for key, value in variables.items() if value is not None}
        log_path = self.folder / f"{len(self.services):02d}-{name}.log"
        service = Service(name, argv, environment, log_path)
        self.services.append(service)
        return service

    def start_all(self, stages: tuple[str, ...] = MOCK_STAGES, without: tuple[str, ...] = ()) -> None:
        """Start one process of each service, except of those in `without`."""
        for name in ("gateway", *stages, "status-store"):
            if name not in without:
                self.start(name)

    async def ready(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Wait until every running process has logged that it is ready."""
        for service in self.services:
            if service.running:
                await service.wait_log("ready", timeout)

    def allow(self, *kinds: str, **fields: Any) -> None:
        """Allow log entries of these kinds or causes of `auditor`; with fields, only entries that have them."""
        self._auditor.allow(*kinds, **fields)

    def allow_only(self, *kinds: str) -> None:
        """Check everything that was logged until now. From now on allow these kinds only, and none that was before."""
        self.check_logs()
        self._auditor.forbid()
        if kinds:
            self.allow(*kinds)

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log entries of this event with these fields, of every process that was started."""
        return [entry for service in self.services for entry in service.logged(event, **fields)]

    def check_logs(self) -> None:
        """Raise AssertionError when a process logged something that no fault of the test explains (see `auditor`).

        It may be called while the processes run.
        """
        running = any(service.running for service in self.services)
        until = datetime.now(UTC) if running else None
        lines = [
            Line(repr(service), entry, service.told_to_stop) for service in self.services for entry in service.unread()
        ]
        self._auditor.check(lines, until)

    def end(self) -> None:
        """Kill every process that still runs with SIGKILL."""
        for service in self.services:
            service.kill()
