"""The processes under test: starts the real console scripts on free loopback ports, and measures their CPU and memory.

Their data and logs are in a new folder below `.heimdex/bench/`, which is removed at the end.
"""

import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench.support.cluster import NatsCluster
from heimdex_cli.embedded import EmbeddedNats, EmbeddedPostgres
from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = Path(sys.executable).parent
STAGES = ("extracting", "analyzing", "indexing")
#: nats-server's `sync_interval` by the value of the option `--sync`: its own default, or a sync at each publish.
SYNC_INTERVALS = {"default": "2m", "always": "always"}

#: CPU seconds, or bytes, by process name. The replicas of a stage are added up, and so are Postgres and its children.
ByProcess = dict[str, float]


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """Create a folder on the checkout's disk, and remove it at the end.

    Not a temporary folder: that may be in memory, where a sync costs nothing.
    """
    path = ROOT / ".heimdex" / "bench" / f"{name}-{os.getpid()}"
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Group:
    """Processes that are measured by name. Each is a ChildProcess, so that none outlives the benchmark."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[tuple[str, ChildProcess]] = []

    def start(self, name: str, argv: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> ChildProcess:
        """Start a process. Several processes may share a name; their figures are then added up."""
        log_path = self.directory / f"{name}.log"
        child = ChildProcess(argv, log_path=log_path, env=dict(os.environ) | dict(environ or {}), stop_seconds=15)
        child.start()
        self._children.append((name, child))
        return child

    def pids(self) -> list[tuple[str, int]]:
        """Return the name and pid of each running process. Raises RuntimeError when one has died."""
        for name, child in self._children:
            if child.died() is not None:
                tail = "\n".join(child.log_path.read_text(errors="replace").splitlines()[-10:])
                raise RuntimeError(f"{name} ended unexpectedly (exit code {child.died()}):\n{tail}")
        return [(name, child.pid) for name, child in self._children if child.pid]

    def pid(self, name: str) -> int:
        """Return the pid of the first process with this name."""
        return next(pid for process, pid in self.pids() if process == name)

    def stop(self, *names: str) -> None:
        """Stop the processes with these names, or without names all of them."""
        chosen = [each for each in self._children if not names or each[0] in names]
        for _, child in chosen:
            child.ask_to_stop()
        for _, child in chosen:
            child.stop()
        self._children = [each for each in self._children if each not in chosen]

    def log_lines(self) -> list[str]:
        """Return the lines that the processes logged. At log level warning there are none unless something failed."""
        return [
            f"{name}: {line}"
            for name in dict.fromkeys(name for name, _ in self._children)
            for line in (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
        ]


class Servers:
    """A nats-server and a Postgres, and the processes that use them; a context manager.

    `stream` is the stream that is empty when all jobs are done. clustered: three nats-servers instead of one.
    """

    stream = "HEIMDEX_JOBS"
    port = 0

    def __init__(self, directory: Path, sync: str = "default", *, clustered: bool = False) -> None:
        interval = SYNC_INTERVALS[sync]
        self.nats: EmbeddedNats | NatsCluster = (
            NatsCluster(directory, interval) if clustered else EmbeddedNats(directory / "nats", sync_interval=interval)
        )
        self.postgres = EmbeddedPostgres(directory / "postgres")
        self.group = Group(directory)

    def __enter__(self) -> "Servers":
        try:
            self.nats.start()
            self.postgres.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes, then the servers."""
        self.group.stop()
        self.nats.stop()
        self.postgres.stop()

    def _all_processes(self) -> list[tuple[str, int]]:
        nodes = self.nats.pids if isinstance(self.nats, NatsCluster) else [self.nats.pid]
        servers = [*(("nats-server", pid) for pid in nodes), ("postgres", self.postgres.pid)]
        return [*self.group.pids(), *((name, pid) for name, pid in servers if pid)]

    def cpu_seconds(self) -> ByProcess:
        """Return the user and system time of each process since its start."""
        return _sum_by_name(self._all_processes(), _cpu_seconds)

    def memory_bytes(self) -> ByProcess:
        """Return the resident memory of each process.

        For Postgres it is the proportional set size, because its processes share most of their pages.
        """
        return _sum_by_name(self._all_processes(), _memory_bytes)


class System(Servers):
    """The whole Heimdex system. It is ready when the context is entered.

    replicas: workers per stage. environ: added to the services' environment.
    """

    def __init__(
        self,
        directory: Path,
        sync: str = "default",
        replicas: int = 1,
        environ: Mapping[str, str] | None = None,
        stages: Sequence[str] = STAGES,
        *,
        clustered: bool = False,
    ) -> None:
        super().__init__(directory, sync, clustered=clustered)
        self.replicas = replicas
        self.stages = stages
        self.port = 0
        self.environ = {**({"HEIMDEX_STREAM_REPLICAS": "3"} if clustered else {}), **(environ or {})}

    def __enter__(self) -> "System":
        super().__enter__()
        try:
            self.port = free_port()
            self.environ = {
                "HEIMDEX_NATS_URL": self.nats.url,
                "HEIMDEX_DATABASE_URL": self.postgres.url,
                "HEIMDEX_PORT": str(self.port),
                "HEIMDEX_MOCK_TIME_SCALE": "0",
                "HEIMDEX_LOG_LEVEL": "warning",
                **self.environ,
            }
            self.start("heimdex-gateway", "gateway")
            self.start("heimdex-status-store", "status-store")
            self.start_workers(self.replicas)
            wait_for_http(f"http://127.0.0.1:{self.port}/readyz", self.group)
        except BaseException:
            self.close()
            raise
        return self

    def start(self, script: str, name: str, *arguments: str) -> None:
        """Start a console script of Heimdex as the process `name`."""
        self.group.start(name, [COMMANDS / script, *arguments], self.environ)

    def start_workers(self, replicas: int) -> None:
        """Start this many additional workers of each stage."""
        for stage in self.stages:
            for _ in range(replicas):
                self.start("heimdex-stage-worker", stage, stage)


def wait_for_http(url: str, group: Group, seconds: float = 60) -> None:
    """Wait until this URL returns 200.

    Raises RuntimeError when a process of the group dies first, or after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        group.pids()
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} did not return 200 within {seconds:g} s")
        time.sleep(0.05)


def _sum_by_name(processes: list[tuple[str, int]], measure: Callable[[psutil.Process], float]) -> ByProcess:
    sums: ByProcess = {}
    for name, pid in processes:
        sums[name] = sums.get(name, 0.0) + measure(psutil.Process(pid))
    return sums


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    # The times of the children that a postmaster has reaped are in its own; those of running children are added below.
    spent = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            own = child.cpu_times()
            spent += own.user + own.system
        except psutil.NoSuchProcess:
            continue
    return float(spent)


def _memory_bytes(process: psutil.Process) -> float:
    children = process.children(recursive=True)
    if not children:
        return float(process.memory_info().rss)
    total = 0
    for each in (process, *children):
        try:
            full = each.memory_full_info()
            total += getattr(full, "pss", full.uss)
        except psutil.Error:
            continue
    return float(total)


def spent_between(before: ByProcess, after: ByProcess) -> ByProcess:
    """Return the CPU seconds by process between two readings."""
    return {name: after[name] - before.get(name, 0.0) for name in after}
