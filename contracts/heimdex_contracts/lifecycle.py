"""Derives a job's state from its events. The state is that of the highest-ranked event, not that of the last write.

    pending ──> processing ──> completed
       │            │  └─────> failed      (a stage failed permanently or ran out of attempts)
       └────────────┴────────> canceled    (by a caller)
                                  │
    pending <── a retry starts the next run of a job in a terminal state

The status of a run never moves against the arrows, because `rank` is a total order on a job's events and every reader
keeps the highest. Duplicates, reordering, replays and two concurrent status stores are therefore harmless.
"""

from datetime import datetime
from functools import cache
from typing import Literal

import msgspec

from heimdex_contracts.job_spec import spec_fields
from heimdex_contracts.messages import (
    DEFAULT_TENANT,
    NOTHING,
    AnyMessage,
    AttemptFailed,
    Canceled,
    Completed,
    Due,
    Failed,
    JobMessage,
    Progress,
    StageRun,
)

Status = Literal["pending", "processing", "completed", "failed", "canceled"]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "canceled"})

Rank = tuple[int, int, int]


class StageOutput(msgspec.Struct, frozen=True):
    """A stage that has succeeded, where only its output is known: as StageRun has it."""

    stage: str
    output: msgspec.Raw = NOTHING


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A job's state according to one event or to the merge of several. `step`, `attempt`, `progress` are its rank.

    result, params: JSON. finished: the stages that have succeeded in this run, with their outputs; None where it is not
    known, as for a tick.
    """

    job_id: str
    type: str
    run: int
    step: int
    attempt: int
    progress: int
    status: Status
    stage: str | None
    result: msgspec.Raw | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    tenant: str = DEFAULT_TENANT
    params: msgspec.Raw = NOTHING
    finished: tuple[StageRun | StageOutput, ...] | None = None

    @property
    def rank(self) -> Rank:
        """The sort key of a job's events: the highest one determines the job's state."""
        return (self.step, self.attempt, self.progress)

    @property
    def ended(self) -> bool:
        """Whether the job is in a terminal state, so that this run has no further events."""
        return self.status in TERMINAL


@cache
def _not_in_attempt_events() -> tuple[str, ...]:
    """The job's own fields that a Snapshot has and a tick or failed attempt lacks: a merge must not lose them."""
    return tuple(name for name in _spec_fields(JobMessage) if name not in spec_fields(Progress))


@cache
def _spec_fields(event_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """The job's own fields that both this message and a Snapshot have."""
    return tuple(name for name in spec_fields(event_type) if name in Snapshot.__struct_fields__)


def snapshot(event: AnyMessage) -> Snapshot:
    """Return the job's state according to this one event."""
    status: Status
    stage: str | None = event.stage
    attempt, progress = 0, event.progress
    result: msgspec.Raw | None = None
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
        **{name: getattr(event, name) for name in _spec_fields(type(event))},
        run=event.run,
        step=event.step,
        attempt=attempt,
        progress=progress,
        status=status,
        stage=stage,
        result=result,
        error=error,
        updated_at=max(event.at, event.created_at),
        finished=event.finished if isinstance(event, JobMessage) else None,
    )


def merge(one: Snapshot, other: Snapshot) -> Snapshot:
    """Merge two states of a job: the one that outranks the other, with the greater progress of its run and later time.

    The merge is commutative and idempotent for the events of one job, so every order of events has the same result.
    Only the next run supersedes a terminal state, whatever the rank of a later message.
    """
    high, low = (other, one) if outranks(other, one) else (one, other)
    progress = max(high.progress, low.progress) if high.run == low.run else high.progress
    job_fields = {name: getattr(low, name) for name in _not_in_attempt_events() if not getattr(high, name)}
    # Within a run, the one that knows more, which may be the lower one: that of a tick is of an earlier event.
    known = [state.finished for state in (high, low) if state.run == high.run and state.finished is not None]
    if high.status != "completed":
        progress = min(progress, 99)
    return msgspec.structs.replace(
        high,
        **job_fields,
        # The merged progress is part of the result's rank, but it cannot make a later event of the same attempt lose:
        # the progress of a lower rank only raises what callers see, and one attempt's events come from one worker.
        progress=progress,
        finished=max(known, key=len, default=None),
        created_at=min(high.created_at, low.created_at),
        updated_at=max(high.updated_at, low.updated_at),
    )


def outranks(one: Snapshot, other: Snapshot) -> bool:
    """Return whether `one` determines the job's state rather than `other`.

    A later run wins; within a run, a terminal state wins over any other; otherwise the higher rank wins.
    """
    return _precedence(one) > _precedence(other)


def _precedence(state: Snapshot) -> tuple[int, bool, Rank]:
    if not state.ended:
        return (state.run, False, state.rank)
    # The first terminal event of a run wins: a later one came from a process that had not seen it.
    step, attempt, progress = state.rank
    return (state.run, True, (-step, -attempt, -progress))
