"""What the events of one batch say, as rows to write. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from heimdex_contracts import lifecycle, messages
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import (
    AnyJobMessage,
    AnyMessage,
    AttemptFailed,
    Completed,
    Progress,
)


class JobRow(msgspec.Struct, frozen=True):
    """A job's merged snapshot, the message that is kept with it, and whether it tells of an attempt alone.

    attempt_only: ticks and failed attempts are all there is, so the hand-over that they belong to must be recorded.
    message: its newest on HEIMDEX_JOBS in this batch; None where there is none, or where nobody will ask for it: a
    completed job's is kept for its `callback_url` alone.
    """

    job: Snapshot
    message: bytes | None
    attempt_only: bool


def ahead(events: Sequence[AnyMessage]) -> frozenset[tuple[str, int]]:
    """Job id and step of each attempt that is told in this batch beside messages of its job that are older only.

    Its hand-over is not here, and may not be recorded either; the others must be, so it has to come by itself.
    """
    newest: dict[str, int] = {}
    of_attempts: list[Progress | AttemptFailed] = []
    for event in events:
        if isinstance(event, (Progress, AttemptFailed)):
            of_attempts.append(event)
        else:
            newest[event.job_id] = max(event.step, newest.get(event.job_id, 0))
    return frozenset(
        (event.job_id, event.step) for event in of_attempts if event.step > newest.get(event.job_id, event.step)
    )


def job_rows(events: Iterable[AnyMessage]) -> list[JobRow]:
    """One row a job, sorted by id: two stores that lock rows in different orders would deadlock.

    events: without those that are `ahead`.
    """
    found: dict[str, JobRow] = {}
    newest: dict[str, tuple[Snapshot, AnyJobMessage]] = {}
    for event in events:
        seen = lifecycle.snapshot(event)
        of_attempt = isinstance(event, (Progress, AttemptFailed))
        if not isinstance(event, (Progress, AttemptFailed)):
            other = newest.get(event.job_id)
            if other is None or lifecycle.outranks(seen, other[0]):
                newest[event.job_id] = (seen, event)
        row = found.get(event.job_id)
        if row is None:
            found[event.job_id] = JobRow(seen, None, of_attempt)
        else:
            found[event.job_id] = JobRow(lifecycle.merge(row.job, seen), None, of_attempt and row.attempt_only)
    return [
        msgspec.structs.replace(found[job_id], message=_kept(newest.get(job_id, (None, None))[1]))
        for job_id in sorted(found)
    ]


def _kept(newest: AnyJobMessage | None) -> bytes | None:
    if newest is None or (isinstance(newest, Completed) and newest.callback_url is None):
        return None
    return messages.encode(newest)
