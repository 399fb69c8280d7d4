# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""The whole system as child processes: NATS, Postgres, the gateway, a worker for each stage, the status store.

`heimdex run`, `heimdex demo` and the end-to-end tests start it. It gets the stages from the command
`heimdex-stage-worker --list`, and communicates with the services only through their environment and HTTP.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from heimdex_cli.embedded.data_directory import DataFolder
from heimdex_cli.embedded.disk_full_recovery import FullDiskWatch
from heimdex_cli.embedded.nats_server import EmbeddedNats
from heimdex_cli.embedded.ports import free_port, is_taken
from heimdex_cli.embedded.postgres import EmbeddedPostgres
from heimdex_cli.embedded.supervisor import UNUSABLE_SETTINGS, Service, Supervised, Supervisor
from heimdex_cli.errors import HeimdexError, NotReady, Unusable, tail
from heimdex_cli.settings import API_PORT, MONITOR_PORT, NATS_PORT, Addresses, shutdown_grace_seconds

# The time that a service has to exit, after its own grace period for handing back its work.
_GRACE_MARGIN_SECONDS = 2.0
# The modules of all pipelines and of the code of all stages are imported, one after the other.
_LIST_SECONDS = 300.0


def _never() -> bool:
    return False


class EmbeddedSystem:
    """A system whose data and logs are in `directory`. They survive `stop` and a restart.

    addresses: for port 0, `start` chooses a free port. environ: added to the services' environment.
    announce: called with one sentence per event that the user should know about, also from other threads.
    commands: the folder of the console scripts; by default that of the running Python.

    `services` has the services by name: `gateway`, one per stage, `status-store`. A service is restarted when it dies,
    as `nats` and `postgres` are. After a `kill` or `stop` through these objects it is not restarted.
    """

    def __init__(
        self,
        directory: Path,
        addresses: Addresses | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        announce: Callable[[str], None] = lambda sentence: None,
        commands: Path | None = None,
    ) -> None:
        self._folder = DataFolder(Path(directory))
        self.directory = self._folder.path
        self.logs = self._folder.logs
        self.callback_secret_path = self._folder.secret_path
        self.addresses = addresses or Addresses()
        self.stages: list[str] = []
        self.services: dict[str, Service] = {}
        self.nats = EmbeddedNats(self.directory / "nats", log_path=self.logs / "nats.log")
        self.postgres = EmbeddedPostgres(self.directory / "postgres", log_path=self.logs / "postgres.log")
        self._environ = dict(os.environ) | dict(environ or {})
        self._grace_seconds = shutdown_grace_seconds(self._environ)
        self._announce = announce
        self._commands = commands or Path(sys.executable).parent
        self._supervisor: Supervisor | None = None
        self._full_disk: FullDiskWatch | None = None

    @property
    def url(self) -> str:
        """The API's URL. A port that `start` chooses is known only after the start."""
        return self.addresses.url

    def start(self, cancelled: Callable[[], bool] = _never) -> None:
        """Start every process, without waiting for readiness. Starts no further process once `cancelled()` is true.

        Raises Unusable, before any process starts, when another system uses the folder, a port is in use, or a pipeline
        or its code cannot be used. Raises ServerFailed, after every process has been stopped again, when NATS or
        Postgres cannot start.
        """
        self._folder.lock()
        try:
            self._end_leftovers()
            self._choose_ports()
            self._announce(f"Starting NATS, Postgres and the services with the data in {self.directory} ...")
            self.stages = self._list_stages(cancelled)
            for server in (self.nats, self.postgres):
                if not cancelled():
                    server.start()
                    self._record()
            self._announce_opened_folders()
            self._create_services()
            for service in self.services.values():
                if not cancelled():
                    service.start()
                    self._record()
            self._supervisor = Supervisor(self._all_processes(), self._announce, self._record)
            self._supervisor.start()
            self._full_disk = FullDiskWatch(self.nats, self._announce)
            self._full_disk.start()
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self, seconds: float = 60.0, cancelled: Callable[[], bool] = _never) -> bool:
        """Wait until GET /readyz returns 200. Returns False once `cancelled()` is true.

        Raises NotReady after `seconds`, with the tail of the log that probably has the cause. Raises Unusable when a
        service rejected its settings or the content of NATS and Postgres.
        """
        deadline = time.monotonic() + seconds
        answer = "nothing answers"
        with httpx.Client(base_url=self.addresses.local_url, timeout=5, trust_env=False) as client:
            while not cancelled():
                try:
                    response = client.get("/readyz")
                    if response.status_code == 200:
                        return True
                    answer = f"the last response was {response.status_code} {response.text.strip()}"
                except httpx.HTTPError as error:
                    answer = f"nothing answers ({error})"
                self._raise_if_hopeless(time.monotonic() > deadline, seconds, answer)
                time.sleep(0.1)
        return False

    def stop(self, hurry: Callable[[], bool] = _never) -> None:
        """Stop the gateway, then the workers, the status store, NATS and Postgres; each after the one before has ended.

        As soon as `hurry()` is true, every remaining process is killed at once. Does nothing when no process runs.
        """
        if self._full_disk is not None:
            self._full_disk.stop()
            self._full_disk = None
        if self._supervisor is not None:
            self._supervisor.stop(hurry)
            self._supervisor = None
        gateway, store = self.services.get("gateway"), self.services.get("status-store")
        workers = [service for service in self.services.values() if service not in (gateway, store)]
        for group in ([gateway], workers, [store]):
            members = [member for member in group if member is not None]
            for member in members:
                member.child.ask_to_stop()
            for member in members:
                if not member.child.wait(hurry=hurry):
                    self._announce(f"{member.name} did not stop in time and is killed.")
                    member.kill()
        self.nats.stop(hurry)
        self.postgres.stop("fast", hurry)
        self._record()
        self._folder.unlock()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _all_processes(self) -> list[Supervised]:
        return [self.nats, self.postgres, *self.services.values()]

    def _announce_opened_folders(self) -> None:
        for folder in self.postgres.opened_folders:
            if not folder.is_relative_to(self.directory):
                self._announce(
                    f"Postgres cannot run as root. It runs as the user nobody, who can now pass through {folder}."
                )

    def _end_leftovers(self) -> None:
        names = self._folder.end_leftovers()
        if names:
            self._announce(f"Stopped the processes that an earlier run left running: {', '.join(names)}.")

    def _choose_ports(self) -> None:
        """Choose a free port where 0 is set. Raises Unusable when a port is in use."""
        addresses = self.addresses
        for variable, host, port in (
            (API_PORT, addresses.host, addresses.port),
            (NATS_PORT, "127.0.0.1", addresses.nats_port),
            (MONITOR_PORT, "127.0.0.1", addresses.monitor_port),
        ):
            if port and is_taken(host, port):
                raise Unusable(f"Port {port} is in use: set {variable} to choose another one.")
        self.addresses = replace(addresses, port=addresses.port or free_port(addresses.host))
        self.nats.set_ports(addresses.nats_port, addresses.monitor_port)

    def _list_stages(self, cancelled: Callable[[], bool]) -> list[str]:
        """Return the stages of every pipeline, or none once `cancelled()` is true.

        Raises Unusable when a pipeline, or the code of a stage, cannot be used.
        """
        command = self._commands / "heimdex-stage-worker"
        # Files and no pipes: a process that an imported module leaves running keeps a pipe open.
        with tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    [str(command), "--list"],
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=listed,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                raise HeimdexError(f"The stages cannot be listed: {command} could not be run: {error}") from error
            deadline = time.monotonic() + _LIST_SECONDS
            try:
                while process.poll() is None and not cancelled():
                    if time.monotonic() > deadline:
                        raise Unusable(
                            f"The modules that HEIMDEX_PIPELINES and its stages name were not imported within "
                            f"{_LIST_SECONDS:g} s: move what takes long from a module into a function."
                        )
                    time.sleep(0.02)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if cancelled():
                return []
            listed.seek(0)
            errors.seek(0)
            stages = listed.read().decode(errors="replace").split()
            reasons = errors.read().decode(errors="replace").strip()
        if process.returncode == UNUSABLE_SETTINGS and reasons:
            raise Unusable(reasons.splitlines()[-1])
        if process.returncode != 0 or not stages:
            raise HeimdexError(
                f"The stages cannot be listed: `{command.name} --list` ended with exit code {process.returncode}.",
                reasons,
            )
        return stages

    def _create_services(self) -> None:
        env = self._environ | {
            "HEIMDEX_NATS_URL": self.nats.url,
            "HEIMDEX_DATABASE_URL": self.postgres.url,
            "HEIMDEX_HOST": self.addresses.host,
            "HEIMDEX_PORT": str(self.addresses.port),
        }
        if not env.get("HEIMDEX_CALLBACK_SECRET"):
            env["HEIMDEX_CALLBACK_SECRET"] = self._folder.callback_secret()
        commands = {"gateway": ["heimdex-gateway"]}
        commands |= {stage: ["heimdex-stage-worker", stage] for stage in self.stages}
        commands |= {"status-store": ["heimdex-status-store"]}
        self.services = {
            name: Service(
                name,
                [self._commands / command, *arguments],
                env=env,
                log_path=self.logs / f"{name}.log",
                stop_seconds=self._grace_seconds + _GRACE_MARGIN_SECONDS,
            )
            for name, (command, *arguments) in commands.items()
        }

    def _record(self) -> None:
        children = [("nats", self.nats.child), ("postgres", self.postgres.child)]
        children += [(name, service.child) for name, service in self.services.items()]
        self._folder.record((name, child.child) for name, child in children if child is not None and child.child)

    def _raise_if_hopeless(self, too_late: bool, seconds: float, answer: str) -> None:
        if self._supervisor is None:
            raise NotReady("The system is not running.")
        refusing = self._supervisor.refused_settings()
        if refusing is not None:
            raise Unusable(f"{refusing.name} refuses to run:", tail(refusing.log_path, lines=1))
        if too_late:
            failing = self._supervisor.most_failing() or self.services["gateway"]
            raise NotReady(
                f"The system was not ready within {seconds:g} s: {answer}. The end of {failing.log_path}:",
                tail(failing.log_path),
            )
