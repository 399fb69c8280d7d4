"""Status is a maximum, not a last write: what each event says of its job, and which of two events wins.

    pending ──> processing ──> completed
       │            │  └─────> failed      (the worker gave up)
       └────────────┴────────> canceled    (a caller's own)
                                  │
    pending <── a retry starts the next run of an ended job

A run's status never goes against the arrows, because `rank` is a total order on a job's events and every reader
keeps the highest: duplicates, reordering, replays and two status stores at once are then harmless.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from heimdex_contracts.messages import (
    DEFAULT_TENANT,
    AnyMessage,
    AttemptFailed,
    Canceled,
    Completed,
    Due,
    Failed,
    Progress,
)

Status = Literal["pending", "processing", "completed", "failed", "canceled"]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "canceled"})

Rank = tuple[int, int, int]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A job as one event, or the merge of several, shows it. `step`, `attempt`, `progress` are its rank."""

    job_id: str
    type: str
    run: int
    step: int
    attempt: int
    progress: int
    status: Status
    stage: str | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    tenant: str = DEFAULT_TENANT

    @property
    def rank(self) -> Rank:
        """Orders the events of one job; the highest tells its status."""
        return (self.step, self.attempt, self.progress)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens in this run."""
        return self.status in TERMINAL


def snapshot(event: AnyMessage) -> Snapshot:
    """What this one event says of its job."""
    status: Status
    stage: str | None = event.stage
    attempt, progress = 0, event.progress
    result: dict[str, Any] | None = None
    error: str | None = None
    match event:
        case Due():
            attempt = event.attempts
            status = "processing" if event.started else "pending"
            if not event.started:
                stage = None
        case Progress():
            attempt = event.attempt
            status = "processing"
            progress = min(99, progress)
        case AttemptFailed():
            attempt = event.attempt
            status = "processing"
        case Completed():
            status, result, progress = "completed", event.result, 100
        case Failed():
            status, error, attempt = "failed", event.error, event.attempt
        case Canceled():
            status = "canceled"
    return Snapshot(
        job_id=event.job_id,
        type=event.type,
        run=event.run,
        step=event.step,
        attempt=attempt,
        progress=progress,
        status=status,
        stage=stage,
        result=result,
        error=error,
        created_at=event.created_at,
        updated_at=max(event.at, event.created_at),
        tenant=event.tenant,
    )


def merge(one: Snapshot, other: Snapshot) -> Snapshot:
    """The job as both show it: the higher rank's, with the further progress of its run and the later time.

    Commutative and idempotent for the events of one job, so that any order of them ends in the same. Nothing but the
    next run follows an end, whatever the rank of a message that says so.
    """
    high, low = (other, one) if outranks(other, one) else (one, other)
    progress = max(high.progress, low.progress) if high.run == low.run else high.progress
    if high.status != "completed":
        progress = min(progress, 99)
    return msgspec.structs.replace(
        high,
        # The rank keeps its own progress only through the merge itself: a further progress of a lower rank raises
        # what people see, and cannot make a later event of the same attempt lose, which comes from the same worker.
        progress=progress,
        created_at=min(high.created_at, low.created_at),
        updated_at=max(high.updated_at, low.updated_at),
    )


def outranks(one: Snapshot, other: Snapshot) -> bool:
    """Whether the job is told by this one rather than by the other: in a later run, ended, or further on."""
    return _place(one) > _place(other)


def _place(seen: Snapshot) -> tuple[int, bool, Rank]:
    if not seen.ended:
        return (seen.run, False, seen.rank)
    # Of two ends of one run the first one counts: what came after it, went on without knowing of it.
    step, attempt, progress = seen.rank
    return (seen.run, True, (-step, -attempt, -progress))
