"""What an event adds to a job's history: written by the status store, shown by the gateway, the same for both."""

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
    """One entry; the fields are the columns of the view `job_history`, in order.

    kind: attempt_failed, a Due's reason, how the job ended, or one of CALLBACK_KINDS. `stage`: where the job is then.
    The `ended_` fields, `started_at` and `seconds` tell of the attempt that this event ended, where it ended one.
    `attempt` is 0 but for attempt_failed, and for a callback, where it is the number of the try: with `step`, it makes
    the entry's identity. A callback has the step of the end that it tells.
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


#: After the end of a run: how each try to tell it to its `callback_url` went.
_CALLBACK_KINDS: Final = {
    CALLBACK_FAILED: "callback_failed",
    CALLBACK_DELIVERED: "callback_delivered",
    CALLBACK_GIVEN_UP: "callback_given_up",
}
CALLBACK_KINDS: Final = frozenset(_CALLBACK_KINDS.values())


def event_rows(events: Iterable[AnyMessage]) -> list[EventRow]:
    """The history that these events add: one row for each but the ticks."""
    return [event_row(event) for event in events if not isinstance(event, Progress)]


def event_row(event: AnyJobMessage | AttemptFailed) -> EventRow:
    """The entry of one event."""
    place: dict[str, Any] = {
        "job_id": event.job_id,
        "step": event.step,
        "run": event.run,
        "stage": event.stage,
    }
    match event:
        case AttemptFailed():
            return EventRow(
                **place,
                attempt=event.attempt,
                kind="attempt_failed",
                at=event.at,
                ended_stage=event.stage,
                ended_attempt=event.attempt,
                started_at=event.started_at,
                seconds=max(0.0, (event.at - event.started_at).total_seconds()),
                error=event.error,
                delay_seconds=event.delay_seconds,
            )
        case Due():
            ended = event.finished[-1] if event.reason == "handed_over" and event.finished else None
            return EventRow(**place, attempt=0, kind=event.reason, at=event.at, **_ended(ended))
        case Completed():
            ended = event.finished[-1] if event.finished else None
            return EventRow(**place, attempt=0, kind="completed", at=event.at, **_ended(ended))
        case Failed():
            return EventRow(
                **place,
                attempt=0,
                kind="failed",
                at=event.at,
                ended_stage=event.stage,
                ended_attempt=event.attempt,
                started_at=event.started_at,
                seconds=event.seconds,
                error=event.error,
            )
        case Canceled():
            return EventRow(
                **place,
                attempt=0,
                kind="canceled",
                at=event.at,
                ended_stage=event.stage if event.attempt else None,
                ended_attempt=event.attempt or None,
                started_at=event.started_at,
                seconds=event.seconds,
            )


def callback_row(told: CallbackResult) -> EventRow:
    """The entry of one try to call back."""
    return EventRow(
        job_id=told.end.job_id,
        step=told.end.step,
        attempt=told.tries,
        run=told.end.run,
        kind=_CALLBACK_KINDS[token(told)],
        stage=told.end.stage,
        at=told.at,
        error=told.error if isinstance(told, CallbackFailed | CallbackGivenUp) else None,
        delay_seconds=told.delay_seconds if isinstance(told, CallbackFailed) else None,
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
