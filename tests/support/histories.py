"""Generates histories of a job as the services write them, for tests with examples and with hypothesis.

`run_of_a_job` follows the rules of the worker: progress rises within a stage, also over several attempts; a hand-back
keeps the number of attempts; a message is written only after its predecessor.
"""

import uuid
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import Raw

from heimdex_contracts import routes
from heimdex_contracts.messages import (
    NOTHING,
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
    """Return the message of a submitted job that is due at its first stage; `fields` override its fields."""
    common = {"job_id": job_id or new_id(), "type": "mock_process", "step": 0, "created_at": START, "at": START}
    return Due(**{**common, "stage": "extracting", "reason": "submitted", **fields})


def json_text(length: int) -> Raw:
    """Return a JSON string of this many bytes."""
    return Raw(b'"' + b"x" * (length - 2) + b'"')


def stage_run(stage: str, output: Raw = NOTHING) -> StageRun:
    """Return a stage that succeeded in its first attempt with this output."""
    return StageRun(stage, 1, START, START, 1.0, output)


class Writer:
    """Writes the messages of one run of a job, one after the other. `events` has them in order.

    forgetful: an attempt does not know the progress of the one before it. params, output: the job's parameters, and
    what each of its stages returns, as JSON.
    """

    def __init__(
        self,
        job_id: str = "",
        step: int = 0,
        run: int = 1,
        forgetful: bool = False,
        params: msgspec.Raw = NOTHING,
        output: msgspec.Raw = NOTHING,
    ) -> None:
        self.forgetful = forgetful
        self.output = output
        self.at = START
        reason = "submitted" if run == 1 else "retried"
        self.due = due(job_id, step=step, run=run, reason=reason, params=params)
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
            "params": self.due.params,
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
        self.percent = max(
            self.due.progress,
            self.percent,
            routes.progress_along(PIPELINE.stage_names, PIPELINE, self.due.stage, fraction),
        )
        self.events.append(Progress(**self._place(), progress=self.percent, at=self.later()))

    def fail_attempt(self) -> None:
        """Write a last tick and the failed attempt, with the same progress.

        With the tick, the stream has everything that the API may have returned from Postgres.
        """
        self.events.append(
            Progress(**self._place(), progress=max(self.due.progress, self.percent), at=self.later(), ended=True)
        )
        started, percent = self.at, max(self.due.progress, self.percent)
        failed = AttemptFailed(
            **self._place(),
            error="oh",
            delay_seconds=1,
            started_at=started,
            at=self.at,
            progress=percent,
            lost=self.attempt % 2 == 0,
            traceback=None if self.attempt % 2 == 0 else "Traceback:\n  oh",
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
        """Hand the job over to the next stage and return True; at the last stage, complete it and return False."""
        common, started = self._common(), self.due.at
        following = routes.stage_after(PIPELINE.stage_names, self.due.stage)
        output = NOTHING if following is None else self.output
        stage_run = StageRun(self.due.stage, self.attempt, started, self.at, 0.25, output)
        common["finished"] = (*self.due.finished, stage_run)
        if following is None:
            names = [entry.stage for entry in common["finished"]]
            result = {"stages_completed": names, "total_duration_seconds": 6.0, "output": self.output or None}
            raw = msgspec.Raw(msgspec.json.encode(result))
            self.events.append(Completed(**{**common, "progress": 100}, stage=self.due.stage, result=raw))
            return False
        common["progress"] = max(self.due.progress, routes.progress_along(PIPELINE.stage_names, PIPELINE, following))
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
    params: msgspec.Raw = NOTHING,
    output: msgspec.Raw = NOTHING,
) -> list[AnyMessage]:
    """Draw the events of one run in the order in which they are written. ended: the run has a terminal event."""
    writer = Writer(job_id or str(draw(st.uuids())), step, run, forgetful, params, output)
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
    """Return a random run as `run_of_a_job` does, without hypothesis, for tests with thousands of runs."""
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
    """Draw these events in any order, some of them repeated."""
    repeats = draw(st.lists(st.sampled_from(events), max_size=6))
    return draw(st.permutations([*events, *repeats]))
