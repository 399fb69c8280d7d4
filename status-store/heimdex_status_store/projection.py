"""Projects the events of one batch to the rows to write. Pure."""

import itertools
from collections.abc import Iterable, Sequence

import msgspec

from heimdex_contracts import lifecycle, messages, patches
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import (
    AnyJobMessage,
    AnyMessage,
    AttemptFailed,
    Completed,
    Progress,
)


class JobRow(msgspec.Struct, frozen=True):
    """The row of one job: its merged snapshot and the message that is kept with it.

    message: the job's newest message on HEIMDEX_JOBS in this batch, as it arrived, with the fields that this release
    does not know, but without its `params`. None if there is none, or if it is not needed: that of a completed job is
    kept only if the job has a `callback_url`.
    outputs: of a completed job, what its stages returned, without the last one: a JSON object, by the stages' names.
    None if none of them returned anything, and of every other job: its message has them.
    attempt_only: the batch has only ticks and failed attempts of the job, so their hand-over must already be recorded.
    is_new: the batch has the job's first message.
    """

    job: Snapshot
    message: bytes | None = None
    outputs: bytes | None = None
    attempt_only: bool = False
    is_new: bool = False


def ahead(events: Sequence[AnyMessage]) -> frozenset[tuple[str, int]]:
    """Job id and step of each attempt event whose job has messages in this batch, but only of earlier steps.

    The hand-over of such an attempt is not in the batch and may not be recorded yet. The job's messages must be
    recorded nevertheless, so the attempt event must be redelivered separately.
    """
    newest: dict[str, int] = {}
    attempt_events: list[Progress | AttemptFailed] = []
    for event in events:
        if isinstance(event, (Progress, AttemptFailed)):
            attempt_events.append(event)
        else:
            newest[event.job_id] = max(event.step, newest.get(event.job_id, 0))
    return frozenset(
        (event.job_id, event.step) for event in attempt_events if event.step > newest.get(event.job_id, event.step)
    )


def job_rows(events: Iterable[AnyMessage], payloads: Iterable[bytes] | None = None) -> list[JobRow]:
    """One row for each job, sorted by id, because two stores that lock rows in different orders would deadlock.

    events: those of one batch, without the events that are `ahead`. payloads: what each of them was decoded from; None:
    the events were made here, and are encoded.
    """
    rows: dict[str, JobRow] = {}
    newest: dict[str, tuple[Snapshot, AnyJobMessage, bytes | None]] = {}
    for event, payload in zip(events, itertools.repeat(None) if payloads is None else payloads, strict=False):
        snapshot = lifecycle.snapshot(event)
        is_attempt = isinstance(event, (Progress, AttemptFailed))
        if not isinstance(event, (Progress, AttemptFailed)):
            other = newest.get(event.job_id)
            if other is None or lifecycle.outranks(snapshot, other[0]):
                newest[event.job_id] = (snapshot, event, payload)
        row = rows.get(event.job_id)
        if row is None:
            rows[event.job_id] = JobRow(snapshot, attempt_only=is_attempt, is_new=not is_attempt and event.step == 0)
        else:
            rows[event.job_id] = JobRow(
                lifecycle.merge(row.job, snapshot),
                attempt_only=is_attempt and row.attempt_only,
                is_new=row.is_new or (not is_attempt and event.step == 0),
            )
    return [
        msgspec.structs.replace(
            row, message=_kept(*newest[job_id][1:]) if job_id in newest else None, outputs=_outputs(row.job)
        )
        for job_id, row in sorted(rows.items())
    ]


def _outputs(job: Snapshot) -> bytes | None:
    """Return what the stages of a completed job returned, without the last one, whose output is in `result`."""
    if job.status != "completed":
        return None
    outputs = {run.stage: run.output for run in job.finished or () if run.output and run.stage != job.stage}
    return msgspec.json.encode(outputs) if outputs else None


def _kept(newest: AnyJobMessage, payload: bytes | None) -> bytes | None:
    if isinstance(newest, Completed) and newest.callback_url is None:
        return None
    return patches.to_keep(newest, messages.encode(newest) if payload is None else payload)
