# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""One child process of the embedded system: start it in a session of its own, watch it, end it.

NATS, Postgres and every service are each held by one `ChildProcess`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from heimdex_cli.embedded.watchdog import WATCHDOG, ChildRecord, kill_tree

LOG_ROTATE_BYTES = 32 * 1024 * 1024


class ChildProcess:
    """A command that can be started again and again; its output is appended to `log_path`.

    It gets a session of its own, so that Ctrl-C at the terminal reaches only us, and it is registered with
    the watchdog, so that it does not outlive us.

    env: the whole environment. user: (uid, gid) to run as, for root only; its umask is then 077.
    stop_signal, stop_seconds: what `stop` sends, and how long it then waits before SIGKILL.
    rank: if we die, lower ranks are ended first.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
        stop_signal: int = signal.SIGTERM,
        stop_seconds: float = 10.0,
        rank: int = 0,
    ) -> None:
        self.argv = [str(word) for word in argv]
        self.log_path = log_path
        self.stop_seconds = stop_seconds
        self._env = dict(os.environ if env is None else env)
        self._user = user
        self._stop_signal = stop_signal
        self._rank = rank
        self._process: subprocess.Popen[bytes] | None = None
        self._record: ChildRecord | None = None
        self._end_is_wanted = True

    @property
    def pid(self) -> int | None:
        """None unless it is running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def child(self) -> ChildRecord | None:
        """The running process as the watchdog knows it; None unless it is running."""
        return self._record if self.pid is not None else None

    def died(self) -> int | None:
        """Its exit code (minus the signal's number, when a signal ended it) if it ended without our
        asking.
        """
        if self._process is None or self._end_is_wanted:
            return None
        code = self._process.poll()
        if code is not None:
            self._after_end()
        return code

    def start(self) -> None:
        """Start it; nothing happens when it is running. Raises OSError when the command cannot be
        executed.
        """
        if self.pid is not None:
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.log_path)
        uid, gid = self._user or (None, None)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=uid,
                group=gid,
                extra_groups=None if self._user is None else [],
                umask=-1 if self._user is None else 0o077,
                cwd=None if self._user is None else "/",
            )
        self._end_is_wanted = False
        self._record = None
        try:
            started_at = psutil.Process(self._process.pid).create_time()
        except psutil.NoSuchProcess:
            return  # it has ended already: `died` will tell
        self._record = ChildRecord(self._process.pid, started_at, self._stop_signal, self.stop_seconds, self._rank)
        WATCHDOG.watch(self._record)

    def ask_to_stop(self, stop_signal: int | None = None) -> None:
        """Send the stop signal and return at once."""
        self._end_is_wanted = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._stop_signal if stop_signal is None else stop_signal)

    def wait(self, seconds: float | None = None, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait for its end, at most this long (default: `stop_seconds`) or until `hurry()` is true.

        Returns whether it has ended.
        """
        deadline = time.monotonic() + (self.stop_seconds if seconds is None else seconds)
        delay = 0.005
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > deadline or hurry():
                return False
            time.sleep(delay)
            delay = min(delay * 1.5, 0.05)
        self._after_end()
        return True

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End it: the stop signal, the wait, then SIGKILL; SIGKILL as soon as `hurry()` is true."""
        self.ask_to_stop()
        if not self.wait(hurry=hurry):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to it and its descendants; returns when it has ended."""
        self._end_is_wanted = True
        if self._process is None:
            return
        if self._process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                kill_tree(psutil.Process(self._process.pid))
            self._process.wait()
        self._after_end()

    def _after_end(self) -> None:
        if self._process is None or self._record is None:
            return
        # What it started and left behind: the rest of its session, in whatever process group.
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)
        WATCHDOG.forget(self._process.pid)
        self._record = None


def _rotate(log_path: Path) -> None:
    """Put a log that has grown large aside as `<name>.1`, in place of the one before."""
    with suppress(FileNotFoundError):
        if log_path.stat().st_size > LOG_ROTATE_BYTES:
            log_path.replace(log_path.with_name(log_path.name + ".1"))
