"""Builds the successor of a delivery: the hand-over to the next stage, a terminal event, or a hand-back. Pure."""

import time
from datetime import datetime
from typing import Any

import msgspec

from heimdex_contracts import messages, routes, tracing
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import NOTHING, Completed, Due, Failed, Follows, JobMessage, StageRun
from heimdex_contracts.pipelines import Pipeline


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The data of a delivery that its successor needs.

    sequence, ack: the stream sequence and the reply subject of the delivery. began: the start of the delivery by the
    monotonic clock. percent: the job's progress. ran: whether the stage's code was started.
    """

    attempt: int
    sequence: int
    ack: str
    started_at: datetime
    began: float
    percent: int
    ran: bool


def _common(due: Due, held: Ended) -> dict[str, Any]:
    return spec_of(due, JobMessage) | {
        "step": due.step + 1,
        "run": due.run,
        "at": max(messages.now(), held.started_at),
        "progress": max(due.progress, held.percent),
        "not_before": due.not_before,
        "finished": due.finished,
        "follows": Follows(held.sequence, held.ack),
        "trace": tracing.child(due.trace),
    }


def completed_or_next(due: Due, pipeline: Pipeline, held: Ended, output: msgspec.Raw = NOTHING) -> Due | Completed:
    """Return the successor of a stage that succeeded: the hand-over to the next stage, or the completed job.

    output: what the stage returned. That of the last stage is in the result only, the others are in `finished`.
    The message's own route names the next stage. A message without one, of an earlier release, follows `pipeline`, and
    its first hand-over writes that route.
    """
    common = _common(due, held)
    route = common["route"] = routes.route_of(due, pipeline)
    following = routes.stage_after(route, due.stage)
    seconds = round(time.monotonic() - held.began, 6)
    handed_over = NOTHING if following is None else output
    run = StageRun(due.stage, held.attempt, held.started_at, common["at"], seconds, handed_over)
    common["finished"] = (*due.finished, run)
    if following is not None:
        common["progress"] = max(due.progress, routes.progress_along(route, pipeline, following))
        return Due(**common, stage=following, reason="handed_over", started=True)
    worked = sum(entry.seconds for entry in common["finished"])
    # The first run counts from the time at which it could start; a later run counts only the stages' durations.
    since = due.not_before or due.created_at
    elapsed = (common["at"] - since).total_seconds() if due.run == 1 else 0.0
    result = msgspec.json.encode(
        {
            "stages_completed": [entry.stage for entry in common["finished"]],
            # The elapsed time is by the wall clocks of two machines, which may differ. It is at least the stages'
            # durations.
            "total_duration_seconds": round(max(elapsed, worked), 6),
            "output": output or None,
        }
    )
    common["progress"] = 100
    return Completed(**common, stage=due.stage, result=msgspec.Raw(result))


def failed(due: Due, held: Ended, error: str, traceback: str | None = None) -> Failed:
    """Return the successor of a stage that failed permanently or ran out of attempts.

    error: the job's error. traceback: that of the last attempt's error, if it has one.
    """
    common = _common(due, held)
    seconds = round(time.monotonic() - held.began, 6) if held.ran else None
    started_at = held.started_at if held.ran else None
    return Failed(
        **common,
        stage=due.stage,
        attempt=held.attempt,
        error=error,
        started_at=started_at,
        seconds=seconds,
        traceback=traceback,
    )


def handed_back(due: Due, held: Ended) -> Due:
    """Return the same work item again. The interrupted attempt does not count."""
    return Due(
        **_common(due, held),
        stage=due.stage,
        reason="handed_back",
        attempts=held.attempt - 1,
        started=due.started or held.ran,
    )
