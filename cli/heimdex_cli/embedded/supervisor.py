"""Keep the processes of the embedded system running: restart what dies, after a pause that grows.

system.py hands every server and service to one `Supervisor`.
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

FIRST_PAUSE_SECONDS = 0.5
MAX_DELAY_SECONDS = 5.0
# Having run this long, a process that dies again is restarted as promptly as the first time.
STEADY_SECONDS = 30.0
# The exit code with which a service refuses its settings, or what NATS and Postgres hold: another start cannot help.
UNUSABLE_SETTINGS = 2


class Supervised(Protocol):
    """What the supervisor needs of EmbeddedNats, EmbeddedPostgres and Service."""

    @property
    def name(self) -> str:
        """As the terminal and the log file call it."""

    @property
    def log_path(self) -> Path:
        """Where its output goes."""

    @property
    def pid(self) -> int | None:
        """None unless it is running."""

    def died(self) -> int | None:
        """Its exit code if it ended without our asking."""

    def start(self) -> None:
        """Start it; nothing happens when it is running."""


class Service:
    """One of our own processes, by its console script. Ended with SIGTERM, SIGKILL after `stop_seconds`."""

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
        """None unless it is running."""
        return self.child.pid

    def died(self) -> int | None:
        """Its exit code if it ended without our asking."""
        return self.child.died()

    def start(self) -> None:
        """Start it and return at once. Raises HeimdexError when the console script cannot be executed."""
        try:
            self.child.start()
        except OSError as error:
            raise HeimdexError(f"{self.name} could not be started: {error}.") from error

    def kill(self) -> None:
        """SIGKILL, as a crash would, but on purpose: it is not restarted until `start`."""
        self.child.kill()


@dataclass
class _State:
    deaths: int = 0
    """Since it last ran for STEADY_SECONDS."""
    started_at: float = 0.0
    restart_at: float | None = None
    exit_code: int | None = None
    start_failed: bool = False


class Supervisor:
    """Starts each of `processes` again when it dies without our asking; a thread of its own from `start` to
    `stop`.

    announce: is told of every death in one sentence, from that thread.
    on_change: called after every restart, from that thread.
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
        """Begin to watch."""
        self._thread.start()

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Returns when nothing will be restarted any more; a restart under way is waited for unless
        `hurry()`.
        """
        self._stopping.set()
        while self._thread.is_alive() and not hurry():
            self._thread.join(0.05)

    def most_failing(self) -> Supervised | None:
        """The process that died most often lately; None when none did."""
        process, state = max(self._states, key=lambda each: each[1].deaths)
        return process if state.deaths else None

    def refused_settings(self) -> Supervised | None:
        """A service whose last run ended with exit code 2."""
        for process, state in self._states:
            if state.exit_code == UNUSABLE_SETTINGS and isinstance(process, Service):
                return process
        return None

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            for process, state in self._states:
                if not self._stopping.is_set():
                    self._look_at(process, state)

    def _look_at(self, process: Supervised, state: _State) -> None:
        code = process.died()
        now = time.monotonic()
        if process.pid is not None or (code is None and not state.start_failed):
            state.restart_at = None  # it runs, or somebody ended it on purpose
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

    def _schedule(self, process: Supervised, state: _State, now: float, what: str) -> None:
        if now - state.started_at > STEADY_SECONDS:
            state.deaths = 0
        delay = delay_seconds(state.deaths)
        state.deaths += 1
        state.restart_at = now + delay
        self._announce(f"{process.name} {what}; starting it again in {delay:g} s; its log: {process.log_path}")


def delay_seconds(deaths: int) -> float:
    """How long to wait before a restart, after this many deaths in a row before this one: 0.5, 1, 2, 4, 5,
    5, ...
    """
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(deaths, 10), MAX_DELAY_SECONDS)


def describe_exit(code: int) -> str:
    """`exit code 1`, or the signal's name for the negative codes of subprocess: `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
