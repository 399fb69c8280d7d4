"""Fixtures for the tests of the command line and the embedded system, with real child processes and servers."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.standin_services import commands as make_commands

Eventually = Callable[..., None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's tmp_path: as root, pytest makes that private anew, and Postgres runs as another user."""
    path = Path(tempfile.mkdtemp(prefix="heimdex-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def commands(folder: Path) -> Path:
    return make_commands(folder / "bin")


@pytest.fixture
def eventually() -> Eventually:
    def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def processes_below() -> Callable[[Path], list[str]]:
    """Return the processes whose command line or working directory contains this folder."""

    def find(path: Path) -> list[str]:
        processes = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if str(path) in line or Path(process.cwd()).is_relative_to(path):
                    processes.append(f"{process.pid} {line}")
            except psutil.Error:
                pass
        return processes

    return find
