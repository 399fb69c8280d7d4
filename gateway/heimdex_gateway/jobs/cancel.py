"""Cancels a job: one publish, as the successor of its newest message."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, Superseded, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due, Progress
from heimdex_contracts.runtime.backoff import attempts
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_gateway.jobs import change
from heimdex_gateway.jobs.change import Changed, Conflict, JobChanges
from heimdex_gateway.jobs.status import Newest, StateUnavailable

#: How long the removal of a canceled job's work from its queue is attempted.
REMOVED_WITHIN_SECONDS: Final = 30.0
ENDED: Final = "The job has ended ({}): only one that has not can be canceled."


class Cancel:
    """The use case. spawn: starts what may outlast the answer."""

    def __init__(self, changes: JobChanges, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._changes = changes
        self._spawn = spawn

    async def cancel(self, tenant: str, job_id: str, traceparent: str | None) -> Changed | None:
        """Put the job into the terminal state `canceled`; None where the tenant has no such job.

        A queued job never starts; a running stage is interrupted. Raises Conflict when the job is in a terminal state,
        StateUnavailable or BrokerUnavailable when that cannot be determined.
        """
        answer_by = change.answer_by()
        missing = False
        for _ in range(change.LOOKS):
            job, newest = await self._changes.status.job_and_newest(job_id, tenant)
            if job is None:
                return None
            if job.ended:
                raise Conflict(ENDED.format(job.status))
            if newest is None:
                # A replicated stream's leader may not know yet what Postgres does; else the status store restores it.
                missing = True
                await asyncio.sleep(change.BEHIND_SECONDS)
                continue
            due = newest.message
            if not isinstance(due, Due):
                continue  # its terminal event was recorded, and it was run again, between the two reads
            message = canceled(due, newest.sequence, job, await self._running(due), traceparent)
            try:
                await self._changes.publish(message, newest.sequence)
            except Superseded:
                if not await self._changes.is_recorded(message):
                    continue  # it went on to its next stage, or to a terminal state, in between
            if due.not_before is not None:
                await self._remove(newest, answer_by)  # before it fires
            changed = await self._changes.wait_until_visible(message, answer_by)
            # A worker that has not taken it yet need not be asked to drop it.
            await self._remove(newest, answer_by)
            await self._check_it_held(message, newest.sequence, changed)
            return changed
        if missing:
            raise StateUnavailable("The job's messages are being restored. Try again in a few seconds.")
        raise StateUnavailable("The job moves on too fast to be canceled. Try again.")

    async def _running(self, due: Due) -> Progress | None:
        """The newest tick of the attempt that a worker is at; None where none is known."""
        subject = subjects.progress_subject(due.stage, due.job_id)
        try:
            last = await self._changes.broker.last_message(subjects.PROGRESS, subject, timeout=1.0)
            tick = None if last is None else messages.decode_progress(last.subject, last.data)
        except (BrokerUnavailable, JetStreamError, UnusableMessage):
            return None
        return tick if tick is not None and tick.step == due.step else None

    async def _remove(self, work: Newest, answer_by: float) -> None:
        """Take a canceled job's work out of its queue; what is not done by `answer_by` goes on after the answer."""
        removal = self._spawn(self._removal(work))
        await asyncio.wait({removal}, timeout=max(0.0, answer_by - asyncio.get_running_loop().time()))

    async def _removal(self, work: Newest) -> None:
        deadline = asyncio.get_running_loop().time() + REMOVED_WITHIN_SECONDS
        async for _ in attempts(0.5, 0.5, until=deadline):
            try:
                await self._changes.broker.delete_of(subjects.JOBS, work.subject, work.sequence)
                return
            except (BrokerUnavailable, JetStreamError):
                continue

    async def _check_it_held(self, message: AnyJobMessage, sequence: int, changed: Changed) -> None:
        """Raise Conflict if a terminal event of the job was stored before its cancel.

        Between our reads and our publish all that came after `sequence` may have been recorded, and left the stream.
        Raises StateUnavailable if it cannot be determined.
        """
        job = changed.job
        if changed.recorded and job.run == message.run and job.status != "canceled":
            raise Conflict(ENDED.format(job.status))
        if not changed.asked and not await self._changes.status.is_unrecorded(sequence):
            raise StateUnavailable(
                "Whether the job ended before it was canceled cannot be told now. Ask in a few seconds."
            )


def canceled(
    due: Due, sequence: int, job: Snapshot, tick: Progress | None = None, traceparent: str | None = None
) -> Canceled:
    """The message that cancels the job. sequence: that of `due`; tick: the newest of the attempt that is running."""
    progress = max(due.progress, job.progress, tick.progress if tick else 0)
    message = Canceled(
        **change.succeed(due, sequence, job, traceparent),
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
