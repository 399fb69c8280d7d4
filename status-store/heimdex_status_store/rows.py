"""What the events of one batch say, as rows to write. Pure."""

from collections.abc import Iterable

import msgspec

from heimdex_contracts import lifecycle, messages
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import (
    AnyJobMessage,
    AnyMessage,
    AttemptFailed,
    Progress,
)


class JobRow(msgspec.Struct, frozen=True):
    """A job's merged snapshot, its newest message on HEIMDEX_JOBS in this batch, and whether ticks are all there is."""

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
    return [
        msgspec.structs.replace(found[job_id], message=messages.encode(newest[job_id]) if job_id in newest else None)
        for job_id in sorted(found)
    ]
