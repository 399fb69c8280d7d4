"""Following a job through an outage of the API."""

from typing import Any, cast

import pytest

from heimdex_cli import follow as module
from heimdex_cli.api import Job, JobsApi
from heimdex_cli.board import Board
from heimdex_cli.errors import Unreachable
from heimdex_cli.follow import follow


class Api:
    """Answers with these, one after the other; the last for ever."""

    def __init__(self, *answers: Job | Unreachable) -> None:
        self.answers = list(answers)

    def get(self, job_id: str) -> Job:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Unreachable):
            raise answer
        return answer


class Shown(list[Any]):
    def show(self, label: str, job: Job) -> None:
        self.append(job["progress"])


def _job(status: str, progress: int) -> Job:
    return cast(Job, {"id": "j", "status": status, "stage": "indexing", "progress": progress})


def _follow(api: Api, shown: Shown) -> Job:
    return follow(cast(JobsApi, api), "j", cast(Board, shown), sleep=lambda seconds: None)


def test_an_outage_on_the_way_is_waited_for() -> None:
    shown = Shown()
    api = Api(_job("processing", 10), Unreachable("down"), Unreachable("down"), _job("completed", 100))
    assert _follow(api, shown)["status"] == "completed"
    assert shown[0] == 10
    assert shown[-1] == 100


def test_an_outage_that_lasts_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(Unreachable, match="still down"):
        _follow(Api(_job("processing", 10), Unreachable("still down")), Shown())


def test_an_api_that_never_answered_is_said_at_once() -> None:
    api = Api(Unreachable("down"), _job("completed", 100))
    with pytest.raises(Unreachable):
        _follow(api, Shown())
