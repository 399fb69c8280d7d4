"""Keeps the processes of the embedded system running: restarts a process that dies, after an exponential back-off.

system.py gives every server and service to one `Supervisor`.
"""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.errors import HeimdexError

FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 5.0
# When a process dies after it has run this long, its back-off starts again at the first delay.
STEADY_SECONDS = 30.0
# The exit code of a service that rejects its settings or the content of NATS and Postgres: a restart cannot help.
UNUSABLE_SETTINGS = 2


class Supervised(Protocol):
    """The interface that EmbeddedNats, EmbeddedPostgres and Service provide to the supervisor."""

    @property
    def name(self) -> str:
        """The name in messages to the user."""

    @property
    def log_path(self) -> Path:
        """The file of its output."""

    @property
    def pid(self) -> int | None:
        """The process id; None unless the process is running."""

    def died(self) -> int | None:
        """Return the exit code if the process ended without a request, else None."""

    def start(self) -> None:
        """Start the process, unless it is running."""


class Service:
    """A service of Heimdex, run by its console script. It is stopped with SIGTERM, and SIGKILL after `stop_seconds`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        log_path: Path,
        stop_seconds: float,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.child = ChildProcess(argv, log_path=log_path, env=env, stop_seconds=stop_seconds, rank=0)

    @property
    def pid(self) -> int | None:
        """The process id; None unless the process is running."""
        return self.child.pid

    def died(self) -> int | None:
        """Return the exit code if the process ended without a request, else None."""
        return self.child.died()

    def start(self) -> None:
        """Start the service and return at once. Raises HeimdexError when the console script cannot be executed."""
        try:
            self.child.start()
        except OSError as error:
            raise HeimdexError(f"{self.name} could not be started: {error}.") from error

    def kill(self) -> None:
        """Kill the service with SIGKILL, as a crash would end it. The supervisor does not restart it."""
        self.child.kill()


@dataclass
class _State:
    deaths: int = 0
    """The number of deaths since the process last ran for STEADY_SECONDS."""
    started_at: float = 0.0
    restart_at: float | None = None
    exit_code: int | None = None
    start_failed: bool = False


class Supervisor:
    """Restarts each of `processes` when it dies without a request. Runs in a thread, from `start` to `stop`.

    announce: called from that thread with one sentence per death.
    on_change: called from that thread after every restart.
    """

    def __init__(
        self, processes: Sequence[Supervised], announce: Callable[[str], None], on_change: Callable[[], None]
    ) -> None:
        self._states = [(process, _State(started_at=time.monotonic())) for process in processes]
        self._announce = announce
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the thread that watches the processes."""
        self._thread.start()

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop the thread. After the return no process is restarted any more.

        Waits for a restart in progress, unless `hurry()` is true.
        """
        self._stopping.set()
        while self._thread.is_alive() and not hurry():
            self._thread.join(0.05)

    def most_failing(self) -> Supervised | None:
        """Return the process with the most deaths since it last ran steadily; None when no process has died."""
        process, state = max(self._states, key=lambda each: each[1].deaths)
        return process if state.deaths else None

    def refused_settings(self) -> Supervised | None:
        """Return a service that last ended with exit code 2 and has not been restarted; None when there is none."""
        for process, state in self._states:
            if state.exit_code == UNUSABLE_SETTINGS and isinstance(process, Service):
                return process
        return None

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            for process, state in self._states:
                if not self._stopping.is_set():
                    self._check(process, state)

    def _check(self, process: Supervised, state: _State) -> None:
        code = process.died()
        now = time.monotonic()
        if process.pid is not None or (code is None and not state.start_failed):
            state.restart_at = None  # it runs, or it was stopped on purpose
        elif state.restart_at is None:
            state.exit_code = code
            self._schedule(process, state, now, f"ended unexpectedly ({describe_exit(code or 0)})")
        elif now >= state.restart_at:
            state.restart_at = None
            state.started_at = now
            state.exit_code = None
            try:
                process.start()
                state.start_failed = False
            except HeimdexError as error:
                state.start_failed = True
                self._schedule(process, state, now, f"could not be started again: {error.sentence}")
            self._on_change()

    def _schedule(self, process: Supervised, state: _State, now: float, problem: str) -> None:
        if now - state.started_at > STEADY_SECONDS:
            state.deaths = 0
        delay = delay_seconds(state.deaths)
        state.deaths += 1
        state.restart_at = now + delay
        self._announce(f"{process.name} {problem}; starting it again in {delay:g} s; its log: {process.log_path}")


def delay_seconds(deaths: int) -> float:
    """Return the seconds to wait before a restart, by the number of consecutive earlier deaths: 0.5, 1, 2, 4, 5, 5, ...

    deaths: the deaths in a row before the present one; 0 for the first.
    """
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(deaths, 10), MAX_DELAY_SECONDS)


def describe_exit(code: int) -> str:
    """Return `exit code 1`, or for the negative codes of subprocess the name of the signal: `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
