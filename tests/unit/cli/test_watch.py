"""Following a job through an outage of the API."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from heimdex_cli.client import Job, JobsApi, StreamEvent
from heimdex_cli.commands.watch import MAX_OUTAGE_SECONDS, advanced, follow
from heimdex_cli.errors import Unreachable
from heimdex_cli.output.progress import Board


class Api:
    """Answers with these, one after the other, and repeats the last."""

    def __init__(self, *answers: Job | Unreachable) -> None:
        self.answers = list(answers)

    def listen(self, job_id: str, after: str | None) -> Iterator[StreamEvent]:
        """A stream that breaks at once, so that the state comes from GET."""
        raise Unreachable("broken")
        yield

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


def _follow(api: Api, shown: Shown, max_outage_seconds: float = MAX_OUTAGE_SECONDS) -> Job:
    return follow(cast(JobsApi, api), "j", cast(Board, shown), lambda seconds: None, max_outage_seconds)


def test_watch_waits_for_the_end_of_a_short_outage() -> None:
    shown = Shown()
    api = Api(_job("processing", 10), Unreachable("down"), Unreachable("down"), _job("completed", 100))
    assert _follow(api, shown)["status"] == "completed"
    assert shown[0] == 10
    assert shown[-1] == 100


def test_a_long_outage_is_reported() -> None:
    with pytest.raises(Unreachable, match="still down"):
        _follow(Api(_job("processing", 10), Unreachable("still down")), Shown(), max_outage_seconds=0.05)


def test_an_api_that_never_responded_is_reported_at_once() -> None:
    api = Api(Unreachable("down"), _job("completed", 100))
    with pytest.raises(Unreachable):
        _follow(api, Shown())


def _event(name: str, **data: Any) -> StreamEvent:
    return StreamEvent(None, name, {"stage": "indexing", "at": "2025-10-28T12:00:02.000000Z", **data})


@pytest.mark.parametrize(
    ("event", "status", "stage", "progress"),
    [
        (_event("progress", progress=60), "processing", "indexing", 60),
        (_event("progress", progress=30), "processing", "indexing", 40),
        (_event("handed_over"), "processing", "indexing", 40),
        (_event("attempt_failed"), "processing", "indexing", 40),
        (_event("attempt_lost"), "processing", "indexing", 40),
        (_event("handed_back"), "pending", "analyzing", 40),
        (_event("retried"), "pending", None, 0),
        (_event("of a later version"), "pending", "analyzing", 40),
        (_event("completed"), "pending", "analyzing", 40),
    ],
)
def test_an_event_updates_the_shown_job_and_never_decreases_its_progress(
    event: StreamEvent, status: str, stage: str | None, progress: int
) -> None:
    job = cast(Job, {"status": "pending", "stage": "analyzing", "progress": 40, "updated_at": ""})
    shown = advanced(job, event)
    assert (shown["status"], shown["stage"], shown["progress"]) == (status, stage, progress)
    assert shown["updated_at"] == "2025-10-28T12:00:02.000000Z"
