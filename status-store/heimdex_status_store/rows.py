"""What the events of one batch say, as rows to write. Pure."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from heimdex_contracts import lifecycle, messages
from heimdex_contracts.lifecycle import Snapshot
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


class JobRow(msgspec.Struct, frozen=True):
    """A job's merged snapshot, its newest message on HEIMDEX_JOBS in this batch, and whether ticks are all there is."""

    job: Snapshot
    message: bytes | None
    only_ticks: bool


class EventRow(msgspec.Struct, frozen=True):
    """One row of the history; the fields are the columns of `job_events`, in order."""

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


def job_rows(events: Iterable[AnyMessage]) -> list[JobRow]:
    """One row a job, sorted by id: two stores that lock rows in different orders would deadlock."""
    found: dict[str, JobRow] = {}
    newest: dict[str, AnyJobMessage] = {}
    for event in events:
        seen = lifecycle.snapshot(event)
        tick = isinstance(event, Progress)
        if not isinstance(event, (Progress, AttemptFailed)):
            other = newest.get(event.job_id)
            if other is None or event.step > other.step:
                newest[event.job_id] = event
        row = found.get(event.job_id)
        if row is None:
            found[event.job_id] = JobRow(seen, None, tick)
        else:
            found[event.job_id] = JobRow(lifecycle.merge(row.job, seen), None, tick and row.only_ticks)
    return [
        msgspec.structs.replace(found[job_id], message=messages.encode(newest[job_id]) if job_id in newest else None)
        for job_id in sorted(found)
    ]


def event_rows(events: Iterable[AnyMessage]) -> list[EventRow]:
    """The history that these events add: one row for each but the ticks."""
    return [_event_row(event) for event in events if not isinstance(event, Progress)]


def _event_row(event: AnyJobMessage | AttemptFailed) -> EventRow:
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
                error=event.error,
            )
        case Canceled():
            return EventRow(**place, attempt=0, kind="canceled", at=event.at)


def _ended(run: StageRun | None) -> dict[str, Any]:
    if run is None:
        return {}
    return {
        "ended_stage": run.stage,
        "ended_attempt": run.attempt,
        "started_at": run.started_at,
        "seconds": run.seconds,
    }
