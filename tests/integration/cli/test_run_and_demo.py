"""`heimdex run` and `heimdex demo` as processes at a terminal, with stand-ins for the services."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from heimdex_cli.embedded.ports import free_port
from tests.support.standin_services import SERVICES

CALL = """
import sys
from functools import partial
from pathlib import Path
import heimdex_cli.main, heimdex_cli.commands.run, heimdex_cli.commands.demo
for module, name in ((heimdex_cli.commands.run, "run"), (heimdex_cli.commands.demo, "demo")):
    setattr(module, name, partial(getattr(module, name), Path(sys.argv[1])))
sys.exit(heimdex_cli.main.call(sys.argv[2:]))
"""


def _start(folder: Path, commands: Path, word: str, **environ: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(commands), word],
        cwd=folder,
        # PATH as in a shell in which no virtual environment is active.
        env={name: value for name, value in os.environ.items() if not name.startswith("HEIMDEX_")}
        | {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As a shell does: Ctrl-C is then a signal to this whole group.
        start_new_session=True,
    )


def _ports() -> dict[str, str]:
    return {
        "HEIMDEX_PORT": str(free_port()),
        "HEIMDEX_EMBEDDED_NATS_PORT": str(free_port()),
        "HEIMDEX_EMBEDDED_NATS_MONITOR_PORT": "0",
    }


def _read_until(process: "subprocess.Popen[str]", words: str) -> str:
    assert process.stdout is not None
    text = ""
    while words not in text:
        line = process.stdout.readline()
        assert line, f"it ended without saying {words!r}: {text}"
        text += line
    return text


def test_run_prints_all_addresses_and_stops_completely_at_ctrl_c(folder: Path, commands: Path, processes_below) -> None:
    ports = _ports()
    with _start(folder, commands, "run", **ports) as process:
        text = _read_until(process, "Press Ctrl-C to stop it.")
        url = f"http://localhost:{ports['HEIMDEX_PORT']}"
        for words in (
            url,
            f"{url}/schema",
            f"nats --server nats://localhost:{ports['HEIMDEX_EMBEDDED_NATS_PORT']} sub 'heimdex.jobs.>'",
            f"postgresql://heimdex@/heimdex?host={folder.resolve()}/.heimdex/postgres/data",
            ".heimdex/logs/",
            f"try `HEIMDEX_URL={url} {Path(sys.executable).parent}/heimdex submit --watch`",
            "none required: anyone who can reach the API can use it",
        ):
            assert words in text
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200

        second = _start(folder, commands, "run", **ports)
        output, _ = second.communicate(timeout=30)
        assert second.returncode == 2
        assert f"running already on the data in {folder.resolve()}/.heimdex (process {process.pid})" in output
        assert output.count("\n") == 1

        (folder / "elsewhere").mkdir()
        third = _start(folder / "elsewhere", commands, "run", **ports)
        output, _ = third.communicate(timeout=30)
        assert third.returncode == 2
        assert output == f"heimdex: Port {ports['HEIMDEX_PORT']} is in use: set HEIMDEX_PORT to choose another one.\n"

        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    assert processes_below(folder) == []


def test_run_kills_at_once_at_the_second_ctrl_c(folder: Path, commands: Path, processes_below) -> None:
    with _start(folder, commands, "run", STANDIN_STUBBORN="gateway", **_ports()) as process:
        _read_until(process, "Press Ctrl-C to stop it.")
        os.killpg(process.pid, signal.SIGINT)
        _read_until(process, "Stopping the services")
        began_at = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert time.monotonic() - began_at < 9, "it waited for the grace period of 12 s"
    assert processes_below(folder) == []


def test_run_leaves_no_process_when_it_is_killed(folder: Path, commands: Path, eventually, processes_below) -> None:
    with _start(folder, commands, "run", **_ports()) as process:
        _read_until(process, "Press Ctrl-C to stop it.")
        assert len(json.loads((folder / ".heimdex" / "processes.json").read_text())) == 2 + len(SERVICES)
        process.kill()
    eventually(lambda: processes_below(folder) == [])


def test_demo_shows_both_jobs_until_they_finish_and_leaves_nothing(
    folder: Path, commands: Path, processes_below
) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    process = _start(folder, commands, "demo", STANDIN_SPEED="4", TMPDIR=str(temporary))
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    for words in ("processing extracting", "processing analyzing", "completed", "failed", "total seconds"):
        assert words in text
    assert text.endswith("Done: both jobs ended as expected, and no process is left running.\n")
    assert processes_below(folder) == []
    assert list(temporary.iterdir()) == []


def test_demo_fails_when_a_job_does_not_reach_the_expected_state(folder: Path, commands: Path) -> None:
    process = _start(folder, commands, "demo", STANDIN_SPEED="20", STANDIN_NEVER_FAILS="1")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert "should be failed within 60 s, but it is completed" in text


def test_demo_stops_completely_when_interrupted(folder: Path, commands: Path, processes_below) -> None:
    with _start(folder, commands, "demo", STANDIN_SPEED="0.1", TMPDIR=str(folder)) as process:
        _read_until(process, "processing extracting")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert processes_below(folder) == []
    assert list(folder.glob("heimdex-demo-*")) == []


@pytest.mark.parametrize("word", ["run", "demo"])
def test_an_unusable_port_is_refused(folder: Path, commands: Path, word: str) -> None:
    process = _start(folder, commands, word, HEIMDEX_PORT="x")
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert text == "heimdex: HEIMDEX_PORT='x' is not a port: use a whole number from 1 to 65535.\n"
