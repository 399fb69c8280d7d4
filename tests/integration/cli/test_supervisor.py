"""The supervisor's delays and restarts."""

import os
import signal
import sys
from pathlib import Path

import pytest

from heimdex_cli.embedded.supervisor import Service, Supervisor, delay_seconds, describe_exit

FOR_EVER = "import signal; signal.pause()"


def _service(folder: Path, code: str, name: str = "worker") -> Service:
    return Service(name, [sys.executable, "-c", code], env=os.environ, log_path=folder / f"{name}.log", stop_seconds=5)


def test_a_service_that_dies_is_restarted_and_this_is_reported(folder: Path, eventually) -> None:
    service, messages = _service(folder, FOR_EVER), []
    service.start()
    supervisor = Supervisor([service], messages.append, lambda: None)
    supervisor.start()
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: service.pid not in (None, first))
    supervisor.stop()
    service.child.stop()
    assert len(messages) == 1
    assert messages[0].startswith("worker ended unexpectedly (killed by SIGKILL); starting it again in 0.5 s")
    assert str(folder / "worker.log") in messages[0]


def test_a_service_that_was_stopped_on_purpose_stays_down(folder: Path, eventually) -> None:
    killed, other, messages = _service(folder, FOR_EVER), _service(folder, FOR_EVER, "other"), []
    killed.start()
    other.start()
    supervisor = Supervisor([killed, other], messages.append, lambda: None)
    supervisor.start()
    killed.kill()
    # The supervisor's attention to the other one shows that it has looked at both since.
    assert other.pid is not None
    first = other.pid
    os.kill(first, signal.SIGKILL)
    eventually(lambda: other.pid not in (None, first))
    assert killed.pid is None
    assert [sentence.split()[0] for sentence in messages] == ["other"]
    supervisor.stop()
    other.child.stop()


def test_the_delay_grows_while_a_service_keeps_dying(folder: Path, eventually) -> None:
    service, messages = _service(folder, "import sys; sys.exit(7)"), []
    service.start()
    supervisor = Supervisor([service], messages.append, lambda: None)
    supervisor.start()
    eventually(lambda: len(messages) >= 3)
    supervisor.stop()
    assert [sentence.partition("again in ")[2].split()[0] for sentence in messages[:3]] == ["0.5", "1", "2"]
    assert "exit code 7" in messages[0]
    assert supervisor.most_failing() is service


def test_a_start_that_fails_is_tried_again(folder: Path, eventually) -> None:
    service, messages = _service(folder, FOR_EVER), []
    service.start()
    interpreter = service.child.argv[0]
    service.child.argv[0] = str(folder / "missing")
    supervisor = Supervisor([service], messages.append, lambda: None)
    supervisor.start()
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    eventually(lambda: any("could not be started again" in sentence for sentence in messages))
    service.child.argv[0] = interpreter
    eventually(lambda: service.pid is not None)
    supervisor.stop()
    service.child.stop()


@pytest.mark.parametrize(("deaths", "seconds"), [(0, 0.5), (1, 1), (2, 2), (3, 4), (4, 5), (1000, 5)])
def test_delay_seconds_doubles_up_to_five(deaths: int, seconds: float) -> None:
    assert delay_seconds(deaths) == seconds


@pytest.mark.parametrize(
    ("code", "words"), [(1, "exit code 1"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")]
)
def test_describe_exit_names_the_signal(code: int, words: str) -> None:
    assert describe_exit(code) == words
