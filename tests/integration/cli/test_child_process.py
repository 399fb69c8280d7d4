"""A child process: its requested or unexpected exit, and the watchdog that ends it after its owner was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from heimdex_cli.embedded.child_process import LOG_ROTATE_BYTES, ChildProcess

STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
)


def _child(folder: Path, code: str, **options: float) -> ChildProcess:
    return ChildProcess([sys.executable, "-c", code], log_path=folder / "child.log", **options)


def test_died_reports_an_unexpected_exit_and_not_a_requested_one(folder: Path, eventually) -> None:
    child = _child(folder, "import signal; signal.pause()")
    child.start()
    assert child.died() is None
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: child.died() == -signal.SIGKILL)
    child.start()
    assert child.died() is None
    child.stop()
    assert child.pid is None
    assert child.died() is None


def test_a_child_that_ignores_the_stop_signal_is_killed(folder: Path, eventually) -> None:
    child = _child(folder, STUBBORN, stop_seconds=0.3)
    child.start()
    eventually(lambda: child.log_path.read_text() == "deaf\n")
    child.stop()
    assert child.pid is None


def test_a_child_that_ignores_the_stop_signal_is_killed_at_once_in_an_urgent_stop(folder: Path, eventually) -> None:
    child = _child(folder, STUBBORN, stop_seconds=100)
    child.start()
    eventually(lambda: child.log_path.read_text() == "deaf\n")
    child.stop(hurry=lambda: True)
    assert child.pid is None


def test_a_child_has_a_session_of_its_own(folder: Path) -> None:
    child = _child(folder, "import signal; signal.pause()")
    child.start()
    assert child.pid is not None
    assert os.getsid(child.pid) == child.pid
    child.stop()


@pytest.mark.parametrize("group", [None, 0], ids=["in its process group", "in one of their own"])
def test_processes_that_a_dead_child_left_are_ended(folder: Path, eventually, group: int | None) -> None:
    sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
    code = f"import subprocess; print(subprocess.Popen({sleeper!r}, process_group={group!r}).pid, flush=True)"
    child = _child(folder, code)
    child.start()
    eventually(lambda: child.died() == 0)
    grandchild = int(child.log_path.read_text())
    eventually(lambda: not _runs(grandchild))


@pytest.mark.parametrize("code", ["import signal; signal.pause()", STUBBORN])
def test_the_child_ends_when_its_owner_is_killed(folder: Path, eventually, code: str) -> None:
    owner_code = (
        "import sys, signal\nfrom pathlib import Path\nfrom heimdex_cli.embedded.child_process import ChildProcess\n"
        f"log = Path({str(folder / 'child.log')!r})\n"
        f"child = ChildProcess([sys.executable, '-c', {code!r}], log_path=log, stop_seconds=0.5)\n"
        "child.start(); print(child.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert _runs(pid)
        owner.kill()
    eventually(lambda: not _runs(pid))


def test_a_large_log_is_rotated_at_start(folder: Path) -> None:
    log = folder / "child.log"
    with log.open("wb") as file:
        file.truncate(LOG_ROTATE_BYTES + 1)
    child = _child(folder, "print('new', flush=True)")
    child.start()
    child.wait()
    assert log.read_text() == "new\n"
    assert (folder / "child.log.1").stat().st_size == LOG_ROTATE_BYTES + 1


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
