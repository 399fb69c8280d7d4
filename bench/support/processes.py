"""The processes under test: starts the real console scripts on free loopback ports, and tells what they cost.

Everything lives in a folder of its own under `.heimdex/bench/`, which is removed in the end.
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
#: What nats-server's `sync_interval` is for our option `--sync`: its own default, or each publish.
SYNC_INTERVALS = {"default": "2m", "always": "always"}

#: Seconds of CPU, or bytes, by the name of a process (a stage's replicas together, Postgres with its children).
ByProcess = dict[str, float]


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder on the checkout's disk (a temporary folder may be memory, where a sync costs nothing)."""
    path = ROOT / ".heimdex" / "bench" / f"{name}-{os.getpid()}"
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Group:
    """Processes whose cost is told in one sum by name; each is a ChildProcess, so that none outlives us."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[tuple[str, ChildProcess]] = []

    def start(self, name: str, argv: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> ChildProcess:
        """Start one more process; several may share a name."""
        log_path = self.directory / f"{name}.log"
        child = ChildProcess(argv, log_path=log_path, env=dict(os.environ) | dict(environ or {}), stop_seconds=15)
        child.start()
        self._children.append((name, child))
        return child

    def pids(self) -> list[tuple[str, int]]:
        """Name and pid of each running process. Raises RuntimeError when one has died."""
        for name, child in self._children:
            if child.died() is not None:
                tail = "\n".join(child.log_path.read_text(errors="replace").splitlines()[-10:])
                raise RuntimeError(f"{name} ended unexpectedly (exit code {child.died()}):\n{tail}")
        return [(name, child.pid) for name, child in self._children if child.pid]

    def pid(self, name: str) -> int:
        """The first process of this name."""
        return next(pid for found, pid in self.pids() if found == name)

    def stop(self, *names: str) -> None:
        """End the processes with these names, or all of them."""
        chosen = [each for each in self._children if not names or each[0] in names]
        for _, child in chosen:
            child.ask_to_stop()
        for _, child in chosen:
            child.stop()
        self._children = [each for each in self._children if each not in chosen]

    def log_lines(self) -> list[str]:
        """What the processes said: at log level warning nothing, if all is well."""
        return [
            f"{name}: {line}"
            for name in dict.fromkeys(name for name, _ in self._children)
            for line in (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
        ]


class Servers:
    """One nats-server and one Postgres, and a group of processes on them. `stream`: empty when all jobs are done.

    clustered: three nats-servers instead of one.
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
        """End everything, the servers last."""
        self.group.stop()
        self.nats.stop()
        self.postgres.stop()

    def _everything(self) -> list[tuple[str, int]]:
        nodes = self.nats.pids if isinstance(self.nats, NatsCluster) else [self.nats.pid]
        servers = [*(("nats-server", pid) for pid in nodes), ("postgres", self.postgres.pid)]
        return [*self.group.pids(), *((name, pid) for name, pid in servers if pid)]

    def cpu_seconds(self) -> ByProcess:
        """User and system time since each process started."""
        return _summed(self._everything(), _cpu_seconds)

    def memory_bytes(self) -> ByProcess:
        """Resident memory; of Postgres the proportional share (its processes share most of their pages)."""
        return _summed(self._everything(), _memory_bytes)


class System(Servers):
    """The whole of ours. `replicas`: workers of each stage; `environ`: added to the services' environment."""

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
        """Start one of our console scripts."""
        self.group.start(name, [COMMANDS / script, *arguments], self.environ)

    def start_workers(self, replicas: int) -> None:
        """This many more workers of each stage."""
        for stage in self.stages:
            for _ in range(replicas):
                self.start("heimdex-stage-worker", stage, stage)


def wait_for_http(url: str, group: Group, seconds: float = 60) -> None:
    """Until this URL answers 200. Raises RuntimeError when a process of the group dies first."""
    deadline = time.monotonic() + seconds
    while True:
        group.pids()
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} did not answer 200 within {seconds:g} s")
        time.sleep(0.05)


def _summed(processes: list[tuple[str, int]], measure: Callable[[psutil.Process], float]) -> ByProcess:
    found: ByProcess = {}
    for name, pid in processes:
        found[name] = found.get(name, 0.0) + measure(psutil.Process(pid))
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    # A postmaster's reaped children are in its own account; the others are asked.
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
    """Seconds of CPU by process between two readings."""
    return {name: after[name] - before.get(name, 0.0) for name in after}
