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
    """A job's merged snapshot, the message that is kept with it, and whether ticks are all there is.

    message: its newest on HEIMDEX_JOBS in this batch; None where there is none, or where nobody will ask for it: a
    completed job's is kept for its `callback_url` alone.
    """

    job: Snapshot
    message: bytes | None
    only_ticks: bool


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
    return [msgspec.structs.replace(found[job_id], message=_kept(newest.get(job_id))) for job_id in sorted(found)]


def _kept(newest: AnyJobMessage | None) -> bytes | None:
    if newest is None or (isinstance(newest, Completed) and newest.callback_url is None):
        return None
    return messages.encode(newest)
