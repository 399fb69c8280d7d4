"""The whole embedded system, with stand-ins for our own services and the real servers."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from heimdex_cli.embedded.ports import free_port
from heimdex_cli.embedded.system import EmbeddedSystem
from heimdex_cli.errors import HeimdexError, NotReady, Unusable
from heimdex_cli.settings import Addresses
from tests.support.standin_services import SERVICES

OWNER = """
import sys
from pathlib import Path
from heimdex_cli.embedded.system import EmbeddedSystem
with EmbeddedSystem(Path(sys.argv[1]), commands=Path(sys.argv[2])) as system:
    print(system.url, flush=True)
    sys.stdin.read()
"""


def test_it_becomes_ready_restarts_what_dies_and_leaves_nothing(
    folder: Path, commands: Path, eventually, processes_below
) -> None:
    messages: list[str] = []
    with EmbeddedSystem(folder / "data", commands=commands, announce=messages.append) as system:
        assert list(system.services) == SERVICES
        eventually(lambda: _starts(system, "analyzing") == 1)
        for supervised in (system.services["analyzing"], system.nats, system.postgres):
            first = supervised.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            eventually(lambda it=supervised, was=first: it.pid not in (None, was))
        system.wait_until_ready()
        for name in ("analyzing", "nats", "postgres"):
            assert any(sentence.startswith(f"{name} ended unexpectedly (killed by SIGKILL)") for sentence in messages)
        eventually(lambda: _starts(system, "analyzing") == 2)
    assert processes_below(folder / "data") == []
    assert all(service.pid is None for service in system.services.values())


def test_a_second_system_in_the_same_folder_is_refused(folder: Path, commands: Path) -> None:
    with EmbeddedSystem(folder / "data", commands=commands):
        second = EmbeddedSystem(folder / "data", commands=commands)
        with pytest.raises(Unusable, match=f"running already .*{os.getpid()}"):
            second.start()


@pytest.mark.parametrize(
    ("which", "variable"),
    [
        ("port", "HEIMDEX_PORT"),
        ("nats_port", "HEIMDEX_EMBEDDED_NATS_PORT"),
        ("monitor_port", "HEIMDEX_EMBEDDED_NATS_MONITOR_PORT"),
    ],
)
def test_a_port_in_use_is_refused_before_anything_starts(
    folder: Path, commands: Path, processes_below, which: str, variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        system = EmbeddedSystem(folder / "data", Addresses(**{which: port}), commands=commands)
        with pytest.raises(Unusable, match=f"Port {port} is in use: set {variable}"):
            system.start()
    assert processes_below(folder / "data") == []
    assert not (folder / "data" / "nats").exists()


def test_the_children_end_when_the_owner_is_killed_and_the_next_one_starts(
    folder: Path, commands: Path, eventually, processes_below
) -> None:
    data = folder / "data"
    with _owner(data, commands) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("http://")
        pids = [each["pid"] for each in json.loads((data / "processes.json").read_text())]
        assert len(pids) == 2 + len(SERVICES)
        owner.kill()
    with EmbeddedSystem(data, commands=commands) as system:
        assert system.postgres.pid is not None
    eventually(lambda: processes_below(data) == [])


def test_leftover_processes_are_ended_when_the_watchdog_was_killed_too(folder: Path, commands: Path) -> None:
    data = folder / "data"
    with _owner(data, commands) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("http://")
        for pid in _guardians_of(owner.pid):
            os.kill(pid, signal.SIGKILL)
        owner.kill()
    messages: list[str] = []
    with EmbeddedSystem(data, commands=commands, announce=messages.append):
        names = ", ".join((*SERVICES, "nats", "postgres"))
        assert f"Stopped the processes that an earlier run left running: {names}." in messages


def test_a_stubborn_service_is_killed_after_its_grace(
    folder: Path, commands: Path, eventually, processes_below
) -> None:
    messages: list[str] = []
    environ = {"STANDIN_STUBBORN": "indexing", "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "0.1"}
    with EmbeddedSystem(folder / "data", commands=commands, environ=environ, announce=messages.append) as system:
        eventually(lambda: _starts(system, "indexing") == 1)
    assert "indexing did not stop in time and is killed." in messages
    assert processes_below(folder / "data") == []


def test_a_service_that_refuses_its_settings_is_not_waited_for(folder: Path, commands: Path) -> None:
    system = EmbeddedSystem(folder / "data", commands=commands, environ={"STANDIN_EXIT": "gateway=2"})
    with pytest.raises(Unusable, match="gateway refuses to run") as caught, system:
        pass
    assert "HEIMDEX_SOMETHING of gateway is wrong" in caught.value.detail
    assert system.nats.pid is None


def test_not_ready_shows_the_log_of_the_service_that_keeps_dying(folder: Path, commands: Path) -> None:
    system = EmbeddedSystem(folder / "data", commands=commands, environ={"STANDIN_EXIT": "gateway=1"})
    system.start()
    try:
        with pytest.raises(NotReady, match="not ready within 1 s") as caught:
            system.wait_until_ready(seconds=1)
        assert "HEIMDEX_SOMETHING of gateway is wrong" in caught.value.detail
    finally:
        system.stop()


def test_a_missing_stage_worker_is_reported_and_nothing_is_left(folder: Path, commands: Path, processes_below) -> None:
    (commands / "heimdex-stage-worker").unlink()
    with pytest.raises(HeimdexError, match="The stages cannot be listed"):
        EmbeddedSystem(folder / "data", commands=commands).start()
    assert processes_below(folder / "data") == []


def test_the_services_get_all_addresses_in_their_environment(folder: Path, commands: Path) -> None:
    addresses = Addresses(port=free_port())
    with EmbeddedSystem(folder / "data", addresses, commands=commands) as system:
        pid = system.services["gateway"].pid
        pairs = Path(f"/proc/{pid}/environ").read_text().split("\0") if Path("/proc").exists() else []
        for name, value in (
            ("HEIMDEX_NATS_URL", system.nats.url),
            ("HEIMDEX_DATABASE_URL", system.postgres.url),
            ("HEIMDEX_PORT", str(addresses.port)),
        ):
            assert not pairs or f"{name}={value}" in pairs


def test_a_callback_secret_is_generated_once_unless_one_is_set(
    folder: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEIMDEX_CALLBACK_SECRET", raising=False)
    secrets = []
    for environ in ({}, {}, {"HEIMDEX_CALLBACK_SECRET": "whsec_given"}):
        with EmbeddedSystem(folder / "data", commands=commands, environ=environ) as system:
            pid = system.services["gateway"].pid
            pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
            secrets += [pair.partition("=")[2] for pair in pairs if pair.startswith("HEIMDEX_CALLBACK_SECRET=")]
    kept = folder / "data" / "callback-secret"
    generated = kept.read_text().strip()
    assert secrets == [generated, generated, "whsec_given"]
    assert kept.stat().st_mode & 0o077 == 0
    assert len(base64.b64decode(generated.removeprefix("whsec_"), validate=True)) == 32


def _owner(data: Path, commands: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data), str(commands)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _guardians_of(pid: int) -> list[int]:
    return [each.pid for each in psutil.Process(pid).children() if "watchdog.py" in " ".join(each.cmdline())]


def _starts(system: EmbeddedSystem, name: str) -> int:
    """Return how often this service has started, according to its log."""
    return (system.logs / f"{name}.log").read_text().count('"started"')
