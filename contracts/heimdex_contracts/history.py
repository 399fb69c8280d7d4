"""The history entry of each event. The status store writes it and the gateway returns it, from the same code."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from heimdex_contracts.callbacks import CallbackFailed, CallbackGivenUp, CallbackResult, token
from heimdex_contracts.messages import (
    AnyJobMessage,
    AnyMessage,
    AttemptFailed,
    Canceled,
    Completed,
    Due,
    Failed,
    Progress,
    StageRun,
)
from heimdex_contracts.subjects import CALLBACK_DELIVERED, CALLBACK_FAILED, CALLBACK_GIVEN_UP


class EventRow(msgspec.Struct, frozen=True):
    """One entry of a job's history. The fields are the columns of the view `job_history`, in order.

    job_id, step, attempt: the identity of the entry. `attempt` is 0 except for attempt_failed and for a callback, where
    it is the number of the delivery attempt. A callback has the step of the terminal event that it reports.
    kind: attempt_failed, attempt_lost, the reason of a Due, a terminal state, or one of CALLBACK_KINDS.
    stage: the job's stage after the event.
    ended_stage, ended_attempt, started_at, seconds: the attempt that this event ended; None where it ended none.
    seconds is None where the duration is unknown, as for a lost attempt. traceback: that of `error`, where it has one.
    """

    job_id: str
    step: int
    attempt: int
    run: int
    kind: str
    stage: str | None
    at: datetime
    ended_stage: str | None = None
    ended_attempt: int | None = None
    started_at: datetime | None = None
    seconds: float | None = None
    error: str | None = None
    delay_seconds: float | None = None
    traceback: str | None = None


#: The results of the attempts to deliver a run's terminal event to its `callback_url`.
_CALLBACK_KINDS: Final = {
    CALLBACK_FAILED: "callback_failed",
    CALLBACK_DELIVERED: "callback_delivered",
    CALLBACK_GIVEN_UP: "callback_given_up",
}
CALLBACK_KINDS: Final = frozenset(_CALLBACK_KINDS.values())


def event_rows(events: Iterable[AnyMessage]) -> list[EventRow]:
    """Return the history entries of these events: one for each event except progress."""
    return [event_row(event) for event in events if not isinstance(event, Progress)]


def event_row(event: AnyJobMessage | AttemptFailed) -> EventRow:
    """Return the history entry of one event."""
    position: dict[str, Any] = {
        "job_id": event.job_id,
        "step": event.step,
        "run": event.run,
        "stage": event.stage,
    }
    match event:
        case AttemptFailed():
            return EventRow(
                **position,
                attempt=event.attempt,
                kind="attempt_lost" if event.lost else "attempt_failed",
                at=event.at,
                ended_stage=event.stage,
                ended_attempt=event.attempt,
                started_at=event.started_at,
                seconds=None if event.lost else max(0.0, (event.at - event.started_at).total_seconds()),
                error=event.error,
                delay_seconds=event.delay_seconds,
                traceback=event.traceback,
            )
        case Due():
            ended = event.finished[-1] if event.reason == "handed_over" and event.finished else None
            return EventRow(**position, attempt=0, kind=event.reason, at=event.at, **_ended(ended))
        case Completed():
            ended = event.finished[-1] if event.finished else None
            return EventRow(**position, attempt=0, kind="completed", at=event.at, **_ended(ended))
        case Failed():
            return EventRow(
                **position,
                attempt=0,
                kind="failed",
                at=event.at,
                ended_stage=event.stage,
                ended_attempt=event.attempt,
                started_at=event.started_at,
                seconds=event.seconds,
                error=event.error,
                traceback=event.traceback,
            )
        case Canceled():
            return EventRow(
                **position,
                attempt=0,
                kind="canceled",
                at=event.at,
                ended_stage=event.stage if event.attempt else None,
                ended_attempt=event.attempt or None,
                started_at=event.started_at,
                seconds=event.seconds,
            )


def callback_row(result: CallbackResult) -> EventRow:
    """Return the history entry of one attempt to deliver a callback."""
    return EventRow(
        job_id=result.end.job_id,
        step=result.end.step,
        attempt=result.tries,
        run=result.end.run,
        kind=_CALLBACK_KINDS[token(result)],
        stage=result.end.stage,
        at=result.at,
        error=result.error if isinstance(result, CallbackFailed | CallbackGivenUp) else None,
        delay_seconds=result.delay_seconds if isinstance(result, CallbackFailed) else None,
    )


def _ended(run: StageRun | None) -> dict[str, Any]:
    if run is None:
        return {}
    return {
        "ended_stage": run.stage,
        "ended_attempt": run.attempt,
        "started_at": run.started_at,
        "seconds": run.seconds,
    }
