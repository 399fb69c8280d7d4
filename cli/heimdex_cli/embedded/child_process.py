# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""One child process of the embedded system: starts it in its own session, registers it with the watchdog, stops it.

NATS, Postgres and every service each have one `ChildProcess`.
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
from heimdex_cli.errors import ServerFailed, tail

LOG_ROTATE_BYTES = 32 * 1024 * 1024


class ChildProcess:
    """A command that can be started repeatedly; its output is appended to `log_path`.

    It runs in its own session, so that Ctrl-C at the terminal reaches only the parent process. It is registered with
    the watchdog, so that it does not outlive the parent.

    env: the whole environment. user: (uid, gid) to run as, for root only; the umask is then 077.
    stop_signal, stop_seconds: the signal that `stop` sends, and the seconds it then waits before SIGKILL.
    rank: if the parent dies, the watchdog ends lower ranks first.
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
        self._stop_requested = True

    @property
    def pid(self) -> int | None:
        """The process id; None unless the process is running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def child(self) -> ChildRecord | None:
        """The watchdog's record of the running process; None unless it is running."""
        return self._record if self.pid is not None else None

    def died(self) -> int | None:
        """Return the exit code if the process ended without a request, else None.

        The code is the negative signal number when a signal killed the process.
        """
        if self._process is None or self._stop_requested:
            return None
        code = self._process.poll()
        if code is not None:
            self._clean_up()
        return code

    def start(self) -> None:
        """Start the process, unless it is running. Raises OSError when the command cannot be executed."""
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
        self._stop_requested = False
        self._record = None
        try:
            started_at = psutil.Process(self._process.pid).create_time()
        except psutil.NoSuchProcess:
            return  # it has already ended; `died` returns its exit code
        self._record = ChildRecord(self._process.pid, started_at, self._stop_signal, self.stop_seconds, self._rank)
        WATCHDOG.watch(self._record)

    def wait_until_ready(self, name: str, is_ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `is_ready()` is true. name: what the process is called in an error.

        Raises ServerFailed, with the tail of the log, when the process ends before or is not ready within `seconds`.
        """
        deadline, its_log = time.monotonic() + seconds, f"its log is {self.log_path}"
        while not is_ready():
            if self.pid is None:
                raise ServerFailed(f"{name} ended with exit code {self.died()}; {its_log}", tail(self.log_path))
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name} was not ready within {seconds:.0f} s; {its_log}", tail(self.log_path))
            time.sleep(0.02)

    def ask_to_stop(self, stop_signal: int | None = None) -> None:
        """Send the stop signal and return at once."""
        self._stop_requested = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._stop_signal if stop_signal is None else stop_signal)

    def wait(self, seconds: float | None = None, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the process ends, at most this long (default: `stop_seconds`) or until `hurry()` is true.

        Returns whether it has ended.
        """
        deadline = time.monotonic() + (self.stop_seconds if seconds is None else seconds)
        delay = 0.005
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > deadline or hurry():
                return False
            time.sleep(delay)
            delay = min(delay * 1.5, 0.05)
        self._clean_up()
        return True

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Send the stop signal, wait `stop_seconds`, then send SIGKILL; SIGKILL as soon as `hurry()` is true."""
        self.ask_to_stop()
        if not self.wait(hurry=hurry):
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the process and its descendants; returns when the process has ended."""
        self._stop_requested = True
        if self._process is None:
            return
        if self._process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                kill_tree(psutil.Process(self._process.pid))
            self._process.wait()
        self._clean_up()

    def _clean_up(self) -> None:
        if self._process is None or self._record is None:
            return
        # Kill the processes that it left running: all of its session, whatever their process group.
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)
        WATCHDOG.forget(self._process.pid)
        self._record = None


def _rotate(log_path: Path) -> None:
    """Rename a log of more than LOG_ROTATE_BYTES to `<name>.1`, and replace the previous file of that name."""
    with suppress(FileNotFoundError):
        if log_path.stat().st_size > LOG_ROTATE_BYTES:
            log_path.replace(log_path.with_name(log_path.name + ".1"))
