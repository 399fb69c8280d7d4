"""Cancels a job: one publish, as the successor of its newest message."""

import asyncio
from typing import Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, Superseded, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due, Progress
from heimdex_contracts.runtime.jetstream.connection import JetStreamError, Stored
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.jobs import change
from heimdex_gateway.jobs.change import Changed, Conflict
from heimdex_gateway.jobs.status import StateUnavailable

#: How long the work of a canceled job is tried to be taken out of its queue.
REMOVED_WITHIN_SECONDS: Final = 30.0
ENDED: Final = "The job has ended ({}): only one that has not can be canceled."


async def cancel(gateway: Gateway, tenant: str, job_id: str, traceparent: str | None) -> Changed | None:
    """End the job as canceled; None where there is no such job.

    A queued job never starts; a running stage is interrupted. Raises Conflict when the job has ended, StateUnavailable
    or BrokerUnavailable when that cannot be determined.
    """
    answer_by = asyncio.get_running_loop().time() + change.ANSWERED_WITHIN_SECONDS
    missing = False
    for _ in range(change.LOOKS):
        job, found = await change.job_and_newest(gateway, tenant, job_id)
        if job is None:
            return None
        if job.ended:
            raise Conflict(ENDED.format(job.status))
        if found is None:
            # A replicated stream's leader may not know yet what Postgres does; else the status store restores it.
            missing = True
            await asyncio.sleep(change.BEHIND_SECONDS)
            continue
        stored, due = found
        if not isinstance(due, Due):
            continue  # its end was recorded, and it was run again, between our looks
        tick = await _running(gateway, due)
        message = canceled(due, stored, job, tick, traceparent)
        try:
            await change.publish(gateway, message, stored.sequence)
        except Superseded:
            if not await change.is_recorded(gateway, message):
                continue  # it went on to its next stage, or ended, between the two
        if due.not_before is not None:
            await _remove(gateway, stored, answer_by)  # before it fires
        changed = await change.wait_until_visible(gateway, message, answer_by)
        # A worker that has not taken it yet need not be asked to drop it.
        await _remove(gateway, stored, answer_by)
        await _check_it_held(gateway, message, stored, changed)
        return changed
    if missing:
        raise StateUnavailable("The job's messages are being restored. Try again in a few seconds.")
    raise StateUnavailable("The job moves on too fast to be canceled. Try again.")


async def _running(gateway: Gateway, due: Due) -> Progress | None:
    """The newest tick of the attempt that a worker is at; None where none is known."""
    subject = subjects.progress_subject(due.stage, due.job_id)
    try:
        last = await gateway.broker.last_message(subjects.PROGRESS, subject, timeout=1.0)
        tick = None if last is None else messages.decode_progress(last.subject, last.data)
    except (BrokerUnavailable, JetStreamError, UnusableMessage):
        return None
    return tick if tick is not None and tick.step == due.step else None


def canceled(
    due: Due, stored: Stored, job: Snapshot, tick: Progress | None = None, traceparent: str | None = None
) -> Canceled:
    """The message that cancels the job. stored: where `due` lies; tick: the newest of the attempt that is running."""
    progress = max(due.progress, job.progress, tick.progress if tick else 0)
    message = Canceled(
        **change.succeed(due, stored, job, traceparent),
        progress=min(99, progress),
        finished=due.finished,
        not_before=due.not_before,
        run=due.run,
        stage=due.stage if due.started or tick or job.status == "processing" else None,
    )
    if tick is None:
        return message
    at = max(message.at, tick.at)
    if tick.ended or tick.started_at is None:
        return msgspec.structs.replace(message, at=at)
    seconds = max(0.0, (at - tick.started_at).total_seconds())
    return msgspec.structs.replace(message, at=at, attempt=tick.attempt, started_at=tick.started_at, seconds=seconds)


async def _remove(gateway: Gateway, stored: Stored, answer_by: float) -> None:
    """Take a canceled job's work out of its queue; what is not done by `answer_by` goes on after the answer."""
    removal = gateway.spawn(_removal(gateway, stored))
    await asyncio.wait({removal}, timeout=max(0.0, answer_by - asyncio.get_running_loop().time()))


async def _removal(gateway: Gateway, stored: Stored) -> None:
    deadline = asyncio.get_running_loop().time() + REMOVED_WITHIN_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            await gateway.broker.delete_of(subjects.JOBS, stored.subject, stored.sequence)
            return
        except (BrokerUnavailable, JetStreamError):
            await asyncio.sleep(0.5)


async def _check_it_held(gateway: Gateway, message: AnyJobMessage, stored: Stored, changed: Changed) -> None:
    """Raise Conflict if the job had ended before its cancel was stored, StateUnavailable if that cannot be told.

    Between our looks and our publish all that came after `stored` may have been recorded, and left the stream.
    """
    job = changed.job
    if changed.recorded and job.run == message.run and job.status != "canceled":
        raise Conflict(ENDED.format(job.status))
    if not changed.asked and not await gateway.status.is_unrecorded(stored.sequence):
        raise StateUnavailable("Whether the job ended before it was canceled cannot be told now. Ask in a few seconds.")
