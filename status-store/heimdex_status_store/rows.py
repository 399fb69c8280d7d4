"""What the events of one batch say, as rows to write. Pure."""

from collections.abc import Iterable

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


def job_rows(events: Iterable[AnyMessage]) -> list[JobRow]:
    """One row a job, sorted by id: two stores that lock rows in different orders would deadlock."""
    found: dict[str, JobRow] = {}
    newest: dict[str, AnyJobMessage] = {}
    for event in events:
        seen = lifecycle.snapshot(event)
        of_attempt = isinstance(event, (Progress, AttemptFailed))
        if not isinstance(event, (Progress, AttemptFailed)):
            other = newest.get(event.job_id)
            if other is None or event.step > other.step:
                newest[event.job_id] = event
        row = found.get(event.job_id)
        if row is None:
            found[event.job_id] = JobRow(seen, None, of_attempt)
        else:
            found[event.job_id] = JobRow(lifecycle.merge(row.job, seen), None, of_attempt and row.attempt_only)
    return [msgspec.structs.replace(found[job_id], message=_kept(newest.get(job_id))) for job_id in sorted(found)]


def _kept(newest: AnyJobMessage | None) -> bytes | None:
    if newest is None or (isinstance(newest, Completed) and newest.callback_url is None):
        return None
    return messages.encode(newest)
