"""The real services as processes: their console scripts, started, frozen, killed and read.

`System` starts them, and ends by pid whatever it started. A service is `gateway`, `status-store` or a stage's name.
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

#: Where real times are not the point: no pretended work, short retries, short leases.
QUICK = {
    "HEIMDEX_MOCK_TIME_SCALE": "0",
    "HEIMDEX_RETRY_BACKOFF_SECONDS": "0.1,0.1,0.1",
    "HEIMDEX_ACK_WAIT_SECONDS": "2",
    "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "5",
}


def command(service: str) -> list[str]:
    """The console script of a service, as installed beside this Python."""
    folder = Path(sys.executable).parent
    match service:
        case "gateway" | "status-store":
            return [str(folder / f"heimdex-{service}")]
        case stage:
            return [str(folder / "heimdex-stage-worker"), stage]


def clean_environment() -> dict[str, str]:
    """Ours without any setting of the services, and with the tests importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEIMDEX_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


class Service:
    """One process of a service."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log_path: Path) -> None:
        self.name = name
        self.argv = argv
        self.env = dict(env)
        self.log_path = log_path
        self.told_to_stop = False
        #: How many bytes of the log `unread` has returned.
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
        # Should these tests themselves be killed, nothing that they started stays.
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
        """Each whole line as an object; one that is no JSON object as {"event": "not_json", "line": ...}."""
        return _entries(self.stderr.split("\n")[:-1])

    def unread(self) -> list[dict[str, Any]]:
        """Those that it has logged since this was called last."""
        with self.log_path.open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        return _entries(whole.decode(errors="replace").split("\n")) if newline else []

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log entries of this event with these fields."""
        return [
            entry
            for entry in self.logs
            if entry.get("event") == event and all(entry.get(name) == value for name, value in fields.items())
        ]

    async def wait_log(
        self, event: str, timeout: float = PATIENCE_SECONDS, count: int = 1, **fields: Any
    ) -> dict[str, Any]:
        """The newest such entry, once there are `count` of them."""

        def enough() -> list[dict[str, Any]]:
            found = self.logged(event, **fields)
            if len(found) >= count:
                return found
            if not self.running:
                raise RuntimeError(f"{self} ended with {self.process.poll()} before it logged {event}:\n{self.stderr}")
            return []

        return (await eventually(enough, timeout, lambda: f"{self} logs {event} {fields}; it said:\n{self.stderr}"))[-1]

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._send(signal.SIGKILL)
        self.process.wait()
        WATCHDOG.forget(self.pid)

    def freeze(self) -> None:
        """SIGSTOP: alive for the kernel, silent for everybody else."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """SIGTERM, and return at once."""
        self.told_to_stop = True
        self._send(signal.SIGTERM)

    async def ended(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Its exit code, once it has ended; minus the signal's number where a signal ended it."""
        await eventually(lambda: not self.running, timeout, lambda: f"{self} ends; it said:\n{self.stderr}")
        WATCHDOG.forget(self.pid)
        return self.process.wait()

    async def terminate(self, timeout: float = PATIENCE_SECONDS) -> int:
        """SIGTERM; returns its exit code."""
        self.ask_to_stop()
        return await self.ended(timeout)

    def _send(self, number: int) -> None:
        if self.running:
            self.process.send_signal(number)


def _entries(lines: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError:
            found.append({"event": "not_json", "line": line})
    return found


class System:
    """Services around one NATS and one Postgres. Nothing runs until it is started.

    env: on top of QUICK, for every service started from here on; a value of None removes a variable.
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
        """Of the first gateway."""
        return f"http://127.0.0.1:{self.port}"

    def __getitem__(self, name: str) -> Service:
        """The service's process that was started last."""
        return [service for service in self.services if service.name == name][-1]

    def all(self, name: str) -> list[Service]:
        """Every process of this service that is running, in order of their start."""
        return [service for service in self.services if service.name == name and service.running]

    def start(
        self,
        name: str,
        env: Mapping[str, str | None] | None = None,
        launcher: Path | None = None,
        port: int | None = None,
    ) -> Service:
        """Start one more process of this service, and return at once.

        launcher: a Python script that gets the console script's arguments and calls the same `main`.
        port: the gateway's; by default this system's own.
        """
        wanted: dict[str, str | None] = {**clean_environment(), **self.env, **(env or {})}
        if name == "gateway":
            wanted["HEIMDEX_PORT"] = str(port or self.port)
        argv = command(name)
        if launcher is not None:
            argv = [sys.executable, str(launcher), *argv[1:]]
        environment = {key: value for key, value in wanted.items() if value is not None}
        log_path = self.folder / f"{len(self.services):02d}-{name}.log"
        service = Service(name, argv, environment, log_path)
        self.services.append(service)
        return service

    def start_all(self, stages: tuple[str, ...] = MOCK_STAGES, without: tuple[str, ...] = ()) -> None:
        """One process of each service."""
        for name in ("gateway", *stages, "status-store"):
            if name not in without:
                self.start(name)

    async def ready(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Every running process has said so."""
        for service in self.services:
            if service.running:
                await service.wait_log("ready", timeout)

    def allow(self, *kinds: str, **fields: Any) -> None:
        """Let services log these kinds, or causes, of `auditor`; with fields, only in entries that have them."""
        self._auditor.allow(*kinds, **fields)

    def allow_only(self, *kinds: str) -> None:
        """Check what was logged by now; from here on, allow these kinds and nothing that was allowed before."""
        self.check_logs()
        self._auditor.forbid()
        if kinds:
            self.allow(*kinds)

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log entries of this event with these fields, of every process that was started."""
        return [entry for service in self.services for entry in service.logged(event, **fields)]

    def check_logs(self) -> None:
        """No process logged what no fault of the test explains (see `auditor`). May be called while they run."""
        running = any(service.running for service in self.services)
        until = datetime.now(UTC) if running else None
        lines = [
            Line(repr(service), entry, service.told_to_stop) for service in self.services for entry in service.unread()
        ]
        self._auditor.check(lines, until)

    def end(self) -> None:
        """SIGKILL to whatever still runs."""
        for service in self.services:
            service.kill()
