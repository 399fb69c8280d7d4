"""Runs one command of a stage, and ends it and every process that it started. Started as `python -I -S PATH FD PID`.

FD is a socket to the worker, PID the worker's process id. The launcher reads the command from the socket, and writes to
it when the command has started and when it has ended. The standard streams are those of the command. It imports
nothing of this project, so that it starts fast.

The worker cannot do this itself: it may be killed, and PR_SET_PDEATHSIG in the command would be bound to the worker's
thread, and would not reach the command's own children. The launcher ends them all, also those that moved to a process
group or a session of their own (on Linux, where it can adopt orphans), when one of these happens:

- the command ends;
- the worker writes a byte: SIGTERM to the command's process group, and SIGKILL after the grace period;
- the worker closes the socket, or is gone (a process that the worker forked may hold the socket): SIGKILL at once.
"""

import contextlib
import ctypes
import marshal
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
#: The interval at which the launcher looks whether the worker is still its parent.
PARENT_SECONDS = 0.5
#: The time for the end of killed processes. One that waits for a broken disk does not end.
KILLED_SECONDS = 5.0


class Socket:
    """Messages on the socket: four bytes of length, then an object encoded by marshal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def receive(self) -> "tuple[list[bytes], dict[bytes, bytes], bytes | None, float]":
        """Return the command: its words, its environment, its folder, the grace period in seconds."""
        size = int.from_bytes(self._exactly(4), "big")
        message: tuple[list[bytes], dict[bytes, bytes], bytes | None, float] = marshal.loads(self._exactly(size))  # noqa: S302
        return message

    def send(self, *message: "str | int") -> None:
        """Send a message; a worker that is gone does not need it."""
        data = marshal.dumps(message)
        with contextlib.suppress(OSError):
            os.write(self.fd, len(data).to_bytes(4, "big") + data)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = os.read(self.fd, size - len(data))
            if not more:
                os._exit(1)  # the worker is gone
            data += more
        return data


class Refused(Exception):
    """The command cannot be started. Its arguments: the number of the error, and what it concerns."""


class Command:
    """The process of the command, which leads a session and a process group of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: The exit code, or the negative number of the signal that killed it; None while it runs.
        self.code: int | None = None

    def reap(self) -> bool:
        """Collect the processes that have ended. Returns whether any are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.code = os.waitstatus_to_exitcode(status)

    def signal_group(self, number: int) -> None:
        """Send a signal to the command's process group, if it has one left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill_all(self) -> None:
        """Kill what is left of the command and of the processes that it started."""
        deadline = time.monotonic() + KILLED_SECONDS
        self.signal_group(signal.SIGKILL)
        while self.reap() and time.monotonic() < deadline:
            # Killing a process makes its own children ours.
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def _children() -> "list[int]":
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _start(
    words: "list[bytes]", env: "dict[bytes, bytes]", folder: "bytes | None", libc: "ctypes.CDLL | None"
) -> Command:
    """Start the command. Raises Refused."""
    reading, writing = os.pipe()  # closed by the start of the command
    pid = os.fork()
    if pid == 0:
        problem = b"folder"
        try:
            os.setsid()
            if libc:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)  # Python ignores them, and so would the command
            if folder is not None:
                os.chdir(folder)
            problem = b"command"
            os.execvpe(words[0], words, env)  # noqa: S606  # the stage's own command
        except OSError as error:
            os.write(writing, b"%d %s" % (error.errno or 0, problem))
        finally:
            os._exit(127)
    os.close(writing)
    failure = os.read(reading, 64)
    os.close(reading)
    if failure:
        os.waitpid(pid, 0)
        code, what = failure.split()
        raise Refused(int(code), what.decode())
    return Command(pid)


def _wait(command: Command, control: int, worker: int, woken: int, grace: float) -> None:
    """Wait until the command has ended, or must be killed."""
    poll = select.poll()  # select.select takes no descriptor above 1023, and the worker may have that many
    poll.register(control, select.POLLIN)
    poll.register(woken, select.POLLIN)
    kill_at: float | None = None
    while command.reap() and command.code is None:
        left = PARENT_SECONDS if kill_at is None else min(PARENT_SECONDS, kill_at - time.monotonic())
        if left <= 0 or os.getppid() != worker:
            return
        readable = {fd for fd, _ in poll.poll(left * 1000)}
        if woken in readable:
            os.read(woken, 512)
        if control in readable:
            if not os.read(control, 1):
                return
            if kill_at is None:
                kill_at = time.monotonic() + grace
                command.signal_group(signal.SIGTERM)
                command.signal_group(signal.SIGCONT)  # a stopped process does not see the other one


def main() -> None:
    """Run the command. Never returns."""
    control, worker = Socket(int(sys.argv[1])), int(sys.argv[2])
    os.set_inheritable(control.fd, False)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    # Handlers and not SIG_IGN, which the command would inherit. Only the worker's end or word ends the launcher.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    words, env, folder, grace = control.receive()
    try:
        command = _start(words, env, folder, libc)
    except Refused as refused:
        control.send("refused", *refused.args)
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)  # the end of a pipe is the end of the command and of its children
    control.send("started", command.pid)
    try:
        _wait(command, control.fd, worker, woken, grace)
    finally:
        command.kill_all()
    control.send("ended", -signal.SIGKILL if command.code is None else command.code)
    os._exit(0)


if __name__ == "__main__":
    main()
