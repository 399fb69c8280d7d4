"""Runs the commands of one attempt (`ctx.run_command`), and ends them with it.

Each command runs below a launcher (see `command_launcher`), which outlives this process and then kills the command. One
thread reads its output and logs its errors: that of the blocking stage which called it, or, for an async one, a new
one.
"""

import asyncio
import contextlib
import marshal
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any, Final, cast

import structlog

from heimdex import CommandFailed, StageInterrupted
from heimdex.attempt_state import AttemptState
from heimdex_contracts.runtime.logs import Logger
from heimdex_stage_worker.execution import command_launcher
from heimdex_stage_worker.execution.threads import Threads

#: The time between SIGTERM and SIGKILL for a command whose attempt is over.
GRACE_SECONDS: Final = 0.5
#: The time that an attempt waits at its end until its commands are gone.
END_SECONDS: Final = 1.0
#: The maximum output that is captured. More belongs into a file.
MAX_STDOUT_BYTES: Final = 16 * 1024 * 1024
#: A line of the standard error is cut to this many bytes.
MAX_LINE_BYTES: Final = 2000
#: The lines of one command that are logged in a second. The others are counted.
MAX_LINES_PER_SECOND: Final = 200
#: The end of the standard error that a result and an error have.
TAIL_LINES: Final = 10
#: The time for output that is still in the pipes when the command has ended.
DRAIN_SECONDS: Final = 1.0
#: The launcher kills a command that must end within this time; a launcher that does not is killed itself.
LAUNCHER_SECONDS: Final = GRACE_SECONDS + command_launcher.KILLED_SECONDS + 2.0
_READ_BYTES: Final = 1 << 16

#: Held while a launcher starts. A process that is forked at this moment would keep the other ends of its pipes.
_NO_FORK: Final = threading.RLock()
os.register_at_fork(before=_NO_FORK.acquire, after_in_parent=_NO_FORK.release, after_in_child=_NO_FORK.release)

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Completed = subprocess.CompletedProcess[bytes]


class Commands:
    """The running commands of one attempt. log: the logger of their standard error."""

    def __init__(self, state: AttemptState, threads: Threads, log: Logger | None) -> None:
        self._state = state
        self._threads = threads
        self._log = log
        self._over = False
        self._running: set[Command] = set()

    def run(
        self,
        command: Sequence[Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,
        check: bool = True,
        stdout: Path | None = None,
    ) -> Completed | Coroutine[Any, Any, Completed]:
        """Run a command as `Context.run_command` says. On a running event loop, the result must be awaited."""
        logger = self._log if self._log is not None else structlog.get_logger()
        words = _words(command)
        started = Command(
            words,
            env={os.fsencode(name): os.fsencode(value) for name, value in (os.environ if env is None else env).items()},
            cwd=None if cwd is None else os.fsencode(cwd),
            input=b"" if input is None else bytes(memoryview(input)),
            path=None if stdout is None else os.fsencode(stdout),
            log=logger.bind(
                job_id=self._state.job_id,
                stage=self._state.stage,
                attempt=self._state.attempt,
                command=_shown(words[0]),
            ),
        )
        if _is_on_event_loop():
            return self._run_beside(started, command, check)
        return self._run(started, command, check)

    @property
    def running(self) -> bool:
        """Whether a command of the attempt has not ended yet."""
        return bool(self._running)

    def terminate(self) -> None:
        """End all commands, and refuse others: the attempt is over. Safe to call from any thread."""
        self._over = True
        for command in list(self._running):
            command.terminate()

    async def end(self) -> None:
        """End all commands, and wait until they are gone, for END_SECONDS at most."""
        self.terminate()
        if self._running:
            await asyncio.wait([asyncio.wrap_future(each.ended) for each in self._running], timeout=END_SECONDS)

    def _run(self, started: "Command", command: Sequence[Path], check: bool) -> Completed:
        self._running.add(started)
        try:
            if self._over or self._state.interrupted:
                raise self._interrupted()
            result = started.run(command)
            if self._over or self._state.interrupted:
                raise self._interrupted()
        finally:
            self._running.discard(started)
            started.ended.set_result(None)
        if check and result.returncode != 0:
            raise CommandFailed(result, f"the command {_shown(started.words[0])!r} {_ending(result.returncode)}")
        return result

    def _interrupted(self) -> StageInterrupted:
        return StageInterrupted(f"the attempt {self._state.attempt} of {self._state.stage} is over")

    async def _run_beside(self, started: "Command", command: Sequence[Path], check: bool) -> Completed:
        future = asyncio.wrap_future(self._threads.submit(lambda: self._run(started, command, check)))
        future.add_done_callback(_retrieve)
        try:
            return cast("Completed", await asyncio.shield(future))
        except asyncio.CancelledError:
            started.terminate()
            await asyncio.wait({future}, timeout=LAUNCHER_SECONDS)
            raise


class Command:
    """One command. `run` runs it, once, in the calling thread."""

    def __init__(
        self,
        words: list[bytes],
        *,
        env: dict[bytes, bytes],
        cwd: bytes | None,
        input: bytes,
        path: bytes | None,
        log: Logger,
    ) -> None:
        self.words = words
        #: Resolved when no process of the command is left.
        self.ended: Future[None] = Future()
        self._env = env
        self._cwd = cwd
        self._input = input
        self._path = path
        self._stdout = bytearray()
        self._stderr = Lines(log)
        self._messages = b""
        self._pid: int | None = None
        self._code: int | None = None
        self._refused: tuple[int, str] | None = None
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._terminated_at: float | None = None

    def terminate(self) -> None:
        """Send SIGTERM to the command, and SIGKILL after GRACE_SECONDS. Safe to call from any thread."""
        with self._lock:
            if self._terminated_at is None:
                self._terminated_at = time.monotonic()
                self._send_terminate()

    def run(self, command: Sequence[Path]) -> Completed:
        """Run the command, and return when it has ended. Raises OSError if it cannot be started."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                output: int | IO[bytes] = subprocess.PIPE
                if self._path is not None:
                    output = stack.enter_context(open(self._path, "wb"))
                with _NO_FORK:
                    launcher = subprocess.Popen(  # noqa: S603  # the stage's own command
                        [sys.executable, "-I", "-S", command_launcher.__file__, str(theirs.fileno()), str(os.getpid())],
                        stdin=stack.enter_context(_file_with(self._input)) if self._input else subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.PIPE,
                        pass_fds=(theirs.fileno(),),
                        # A signal for the worker's group, such as Ctrl-C or the end of an isolated attempt, spares it.
                        start_new_session=True,
                        bufsize=0,
                    )
            try:
                self._talk(launcher, ours)
            finally:
                self._end(launcher, ours)
        if self._refused is not None:
            number, problem = self._refused
            where = f" in the folder {_shown(self._cwd or b'')!r}" if problem == "folder" else ""
            raise OSError(number, f"cannot start the command {_shown(self.words[0])!r}{where}: {os.strerror(number)}")
        if len(self._stdout) > MAX_STDOUT_BYTES:
            raise ValueError(
                f"the command {_shown(self.words[0])!r} wrote more than {MAX_STDOUT_BYTES >> 20} MiB to its standard"
                " output: use stdout=PATH to write it to a file"
            )
        if self._code is None:
            raise ChildProcessError(
                f"the launcher of the command {_shown(self.words[0])!r} {_ending(launcher.returncode)}"
            )
        stdout = None if self._path is not None else bytes(self._stdout)
        return subprocess.CompletedProcess(command, self._code, cast("bytes", stdout), self._stderr.tail())

    def _talk(self, launcher: "subprocess.Popen[bytes]", control: socket.socket) -> None:
        """Send the command to its launcher, and read what it and the command write, until both have ended."""
        request = marshal.dumps((self.words, self._env, self._cwd, GRACE_SECONDS))
        with contextlib.suppress(ConnectionError):  # a launcher that could not start says why on its standard error
            control.sendall(len(request).to_bytes(4, "big") + request)
        with self._lock:
            self._control = control
            if self._terminated_at is not None:
                self._send_terminate()
        with selectors.DefaultSelector() as selector:
            selector.register(control, selectors.EVENT_READ, self._read_message)
            if launcher.stdout is not None:
                selector.register(launcher.stdout, selectors.EVENT_READ, self._read_stdout)
            if launcher.stderr is not None:
                selector.register(launcher.stderr, selectors.EVENT_READ, self._stderr.feed)
            ended_at: float | None = None
            while selector.get_map():
                now = time.monotonic()
                if ended_at is None and (self._has_ended() or launcher.poll() is not None):
                    ended_at = now
                # Usually the pipes end too. Another process may hold one: one that the launcher could not end, or one
                # that was forked meanwhile.
                if ended_at is not None and now > ended_at + DRAIN_SECONDS:
                    break
                if self._terminated_at is not None and now > self._terminated_at + LAUNCHER_SECONDS:
                    break
                for key, _ in selector.select(0.5 if ended_at is None else 0.1):
                    data = _read(key.fd)
                    key.data(data)
                    if not data:
                        selector.unregister(key.fileobj)
        self._stderr.feed(b"")

    def _has_ended(self) -> bool:
        return self._code is not None or self._refused is not None

    def _send_terminate(self) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(b"T")

    def _read_message(self, data: bytes) -> None:
        self._messages += data
        while len(self._messages) >= 4:
            end = 4 + int.from_bytes(self._messages[:4], "big")
            if len(self._messages) < end:
                return
            match marshal.loads(self._messages[4:end]):  # noqa: S302  # from our own launcher
                case ("started", int(pid)):
                    self._pid = pid
                case ("ended", int(code)):
                    self._code = code
                case ("refused", int(number), str(problem)):
                    self._refused = (number, problem)
            self._messages = self._messages[end:]

    def _read_stdout(self, data: bytes) -> None:
        if len(self._stdout) <= MAX_STDOUT_BYTES:
            self._stdout += data
            if len(self._stdout) > MAX_STDOUT_BYTES:
                self.terminate()

    def _end(self, launcher: "subprocess.Popen[bytes]", control: socket.socket) -> None:
        """Make sure that no process and no pipe is left."""
        with self._lock:
            self._control = None
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)  # a launcher that still runs now kills its command
        for pipe in (launcher.stdout, launcher.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            launcher.wait(LAUNCHER_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()
        if self._code is None and self._pid is not None:
            # The launcher itself was killed, and its command with it, but not the command's children.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)


class Lines:
    """Logs the lines of a standard error, in bounds, and keeps the last ones."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._rest = b""
        #: Whether the rest of the current line is left out, because its beginning was too long.
        self._cutting = False
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._second = 0
        self._logged = 0
        self._dropped = 0

    def feed(self, data: bytes) -> None:
        """Log the lines in these bytes; b"": the end. A carriage return, as of a progress bar, ends a line too."""
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if not self._cutting:
                self._line(line)
            self._cutting = False
        if len(self._rest) > MAX_LINE_BYTES or (not data and self._rest):
            if not self._cutting:
                self._line(self._rest)
            self._rest, self._cutting = b"", bool(data)
        if not data:
            self._report_dropped()

    def tail(self) -> bytes:
        """Return the last lines."""
        return b"".join(line + b"\n" for line in self._tail)

    def _line(self, line: bytes) -> None:
        line = line[:MAX_LINE_BYTES].rstrip()
        if not line:
            return
        self._tail.append(line)
        second = int(time.monotonic())
        if second != self._second:
            self._report_dropped()
            self._second, self._logged = second, 0
        if self._logged >= MAX_LINES_PER_SECOND:
            self._dropped += 1
            return
        self._logged += 1
        self._log.info("command_stderr", message=line.decode(errors="replace").replace("\x00", "�"))

    def _report_dropped(self) -> None:
        if self._dropped:
            self._log.warning(
                "command_stderr_dropped",
                lines=self._dropped,
                message=f"the command wrote more than {MAX_LINES_PER_SECOND} lines in a second",
            )
            self._dropped = 0


def _file_with(data: bytes) -> IO[bytes]:
    """Return a file with these bytes. (Of a pipe, a process that was forked meanwhile would keep the end open.)"""
    if sys.platform == "linux":
        file = cast("IO[bytes]", open(os.memfd_create("input"), "w+b"))  # noqa: SIM115  # the caller closes it
    else:
        file = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


def _is_on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging an error that nobody waits for any more."""
    if not future.cancelled():
        future.exception()


def _words(command: Sequence[Path]) -> list[bytes]:
    if isinstance(command, str | bytes | os.PathLike) or not isinstance(command, Sequence) or not command:
        raise TypeError("ctx.run_command takes a list of words, as ['ffmpeg', '-i', 'in.mp4']; it does not use a shell")
    words: list[bytes] = []
    for word in command:
        if not isinstance(word, str | bytes | os.PathLike):
            raise TypeError(f"ctx.run_command takes words of text, not {type(word).__name__}: write str(...) around it")
        words.append(os.fsencode(word))
        if b"\x00" in words[-1]:
            raise ValueError("a word of a command must not contain NUL")
    return words


def _shown(word: bytes) -> str:
    return word[:200].decode(errors="replace")


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except ConnectionResetError:
        return b""
