"""The body of GET /jobs/{job_id}/events: the history of a job."""

from datetime import datetime

import msgspec

from heimdex_contracts.history import EventRow
from heimdex_contracts.job_object import moment


class EndedAttempt(msgspec.Struct, frozen=True):
    """The attempt that an event ended, with its start and its duration if they are known."""

    stage: str
    attempt: int
    started_at: str | None
    duration_seconds: float | None


class EventObject(msgspec.Struct, frozen=True):
    """One entry of a job's history. `id` is unique within the job and increases from entry to entry.

    traceback: the end of the traceback of `error`, at most 4 KiB; null where there is none.
    """

    id: str
    event: str
    run: int
    stage: str | None
    at: str
    ended: EndedAttempt | None
    error: str | None
    retry_in_seconds: float | None
    traceback: str | None = None


class EventList(msgspec.Struct, frozen=True):
    """The whole history of a job, in order."""

    events: list[EventObject]


def event_object(row: EventRow) -> EventObject:
    """Convert an entry of the history to its form in the API."""
    ended = None
    if row.ended_stage is not None and row.ended_attempt:  # 0: the stage failed before any attempt
        ended = EndedAttempt(row.ended_stage, row.ended_attempt, _moment(row.started_at), row.seconds)
    return EventObject(
        id=f"{row.step}.{row.attempt}",
        event=row.kind,
        run=row.run,
        stage=row.stage,
        at=moment(row.at),
        ended=ended,
        error=row.error,
        retry_in_seconds=row.delay_seconds,
        traceback=row.traceback,
    )


def _moment(at: datetime | None) -> str | None:
    return None if at is None else moment(at)
