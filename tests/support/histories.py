"""Histories of a job as the services would write them, for tests by example and by hypothesis.

`run_of_a_job` follows the worker's own rules: progress rises within a stage, whatever the attempt, a hand-back goes on
counting attempts, nothing is written before the message that it follows.
"""

import uuid
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from hypothesis import strategies as st

from heimdex_contracts.messages import (
    AnyMessage,
    AttemptFailed,
    Canceled,
    Completed,
    Due,
    Failed,
    Follows,
    Progress,
    StageRun,
)
from heimdex_contracts.mock_process import PIPELINES

PIPELINE = PIPELINES[0]
START = datetime(2025, 10, 28, 12, 0, 0, tzinfo=UTC)


def new_id() -> str:
    return str(uuid.uuid4())


def due(job_id: str = "", **fields: Any) -> Due:
    """A job at its first stage, unless the fields say otherwise."""
    common = {"job_id": job_id or new_id(), "type": "mock_process", "step": 0, "created_at": START, "at": START}
    return Due(**{**common, "stage": "extracting", "reason": "submitted", **fields})


class Writer:
    """Writes one run of a job, message after message; `events` is what was written, in order.

    forgetful: an attempt knows nothing of how far the one before it came.
    """

    def __init__(self, job_id: str = "", step: int = 0, run: int = 1, forgetful: bool = False) -> None:
        self.forgetful = forgetful
        self.at = START
        reason = "submitted" if run == 1 else "retried"
        self.due = due(job_id, step=step, run=run, reason=reason)
        self.attempt = 1
        self.events: list[AnyMessage] = [self.due]
        self.percent = 0

    def later(self, seconds: float = 0.25) -> datetime:
        self.at += timedelta(seconds=seconds)
        return self.at

    def _common(self) -> dict[str, Any]:
        return {
            "job_id": self.due.job_id,
            "type": self.due.type,
            "step": self.due.step + 1,
            "run": self.due.run,
            "created_at": START,
            "at": self.later(),
            "progress": max(self.due.progress, self.percent),
            "finished": self.due.finished,
            "follows": Follows(self.due.step + 100),
        }

    def _place(self) -> dict[str, Any]:
        return {
            "job_id": self.due.job_id,
            "type": self.due.type,
            "step": self.due.step,
            "run": self.due.run,
            "stage": self.due.stage,
            "attempt": self.attempt,
            "created_at": START,
        }

    def tick(self, fraction: float) -> None:
        self.percent = max(self.due.progress, self.percent, PIPELINE.progress(self.due.stage, fraction))
        self.events.append(Progress(**self._place(), progress=self.percent, at=self.later()))

    def fail_attempt(self) -> None:
        """The last tick says what the failed attempt says: the stream then knows all that Postgres may have told."""
        self.events.append(
            Progress(**self._place(), progress=max(self.due.progress, self.percent), at=self.later(), ended=True)
        )
        started, percent = self.at, max(self.due.progress, self.percent)
        failed = AttemptFailed(
            **self._place(), error="oh", delay_seconds=1, started_at=started, at=self.at, progress=percent
        )
        self.events.append(failed)
        self.attempt += 1
        if self.forgetful:
            self.percent = 0

    def hand_back(self) -> None:
        attempts = self.attempt - 1
        self._next(
            Due(**self._common(), stage=self.due.stage, reason="handed_back", attempts=attempts, started=True), attempts
        )

    def finish_stage(self) -> bool:
        """Hand over, or complete the job: then False."""
        common, started = self._common(), self.due.at
        stage_run = StageRun(self.due.stage, self.attempt, started, self.at, 0.25)
        common["finished"] = (*self.due.finished, stage_run)
        following = PIPELINE.stage_after(self.due.stage)
        if following is None:
            names = [entry.stage for entry in common["finished"]]
            result = {"stages_completed": names, "total_duration_seconds": 6.0}
            self.events.append(Completed(**{**common, "progress": 100}, stage=self.due.stage, result=result))
            return False
        common["progress"] = max(self.due.progress, PIPELINE.progress(following))
        self._next(Due(**common, stage=following, reason="handed_over", started=True), 0)
        return True

    def fail(self) -> None:
        error = f"The stage {self.due.stage} failed: oh"
        self.events.append(Failed(**self._common(), stage=self.due.stage, attempt=self.attempt, error=error))

    def cancel(self) -> None:
        started = len(self.events) > 1
        self.events.append(Canceled(**self._common(), stage=self.due.stage if started else None))

    def _next(self, message: Due, attempts: int) -> None:
        self.due, self.attempt, self.percent = message, attempts + 1, 0
        self.events.append(message)


@st.composite
def run_of_a_job(
    draw: st.DrawFn,
    job_id: str = "",
    *,
    ended: bool = True,
    ticks: bool = True,
    step: int = 0,
    run: int = 1,
    forgetful: bool = False,
) -> list[AnyMessage]:
    """One run's events in the order in which they were written; `ended`: up to its terminal event."""
    writer = Writer(job_id or str(draw(st.uuids())), step, run, forgetful)
    for _ in range(draw(st.integers(0, 12))):
        choices = ["fail_attempt", "hand_back", "finish_stage", *(["tick"] * 2 if ticks else [])]
        match draw(st.sampled_from(choices)):
            case "tick":
                writer.tick(draw(st.floats(0, 1)))
            case "fail_attempt":
                writer.fail_attempt()
            case "hand_back":
                writer.hand_back()
            case "finish_stage":
                if not writer.finish_stage():
                    return writer.events
    if ended:
        if draw(st.booleans()):
            writer.fail()
        else:
            writer.cancel()
    return writer.events


def random_run(random: Random) -> list[AnyMessage]:
    """As `run_of_a_job`, without hypothesis: for thousands of runs that need no shrinking."""
    writer = Writer()
    for _ in range(random.randrange(12)):
        match random.choice(["tick", "tick", "fail_attempt", "hand_back", "finish_stage"]):
            case "tick":
                writer.tick(random.random())
            case "fail_attempt":
                writer.fail_attempt()
            case "hand_back":
                writer.hand_back()
            case "finish_stage":
                if not writer.finish_stage():
                    return writer.events
    random.choice([writer.fail, writer.cancel])()
    return writer.events


@st.composite
def shuffled(draw: st.DrawFn, events: list[AnyMessage]) -> list[AnyMessage]:
    """Any order of these events, some of them several times."""
    repeats = draw(st.lists(st.sampled_from(events), max_size=6))
    return draw(st.permutations([*events, *repeats]))
