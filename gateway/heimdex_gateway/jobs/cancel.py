"""Cancels a job with one publish: the successor of its newest message."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

import msgspec

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, Superseded
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due, Progress
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.latest_progress import latest_progress
from heimdex_gateway.jobs import change
from heimdex_gateway.jobs.change import Changed, Conflict, JobChanges
from heimdex_gateway.jobs.status import Newest, StateUnavailable

#: How long the removal of a canceled job's hand-over from its stage's queue is retried.
REMOVED_WITHIN_SECONDS: Final = 30.0
FINISHED: Final = "The job is already {}: only an unfinished job can be canceled."


class Cancel:
    """The use case that cancels a job. spawn: starts a task that may continue after the response."""

    def __init__(self, changes: JobChanges, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._changes = changes
        self._spawn = spawn

    async def cancel(
        self, tenant: str, job_id: str, traceparent: str | None, include: Collection[str] = ()
    ) -> Changed | None:
        """Put the job into the terminal state `canceled`. Returns None if the tenant has no such job.

        A queued job never starts; a running stage is interrupted. This includes a job of a type that the gateway does
        not know, and one whose messages are gone from the stream. include: as in Database.job. Raises Conflict if the
        job is already in a terminal state, StateUnavailable or BrokerUnavailable if this cannot be determined.
        """
        answer_by = self._changes.answer_by()
        not_in_stream = False
        for _ in range(change.MAX_READS):
            job, newest = await self._changes.status.job_and_newest(job_id, tenant)
            if job is None:
                return None
            if job.ended:
                raise Conflict(FINISHED.format(job.status))
            last = newest or await self._changes.lost_message(job)
            if last is None:
                # The leader of a replicated stream may not have the message yet that Postgres has.
                not_in_stream = True
                await asyncio.sleep(change.BEHIND_SECONDS)
                continue
            due = last.message
            if not isinstance(due, Due):
                continue  # between the two reads, its terminal event was recorded and it was retried
            sequence = None if newest is None else newest.sequence
            message = canceled(due, sequence, job, await self._running(due), traceparent)
            try:
                await self._changes.publish(message, sequence or 0, last)
            except Superseded:
                if not await self._changes.is_recorded(message):
                    continue  # meanwhile it reached its next stage or a terminal state, or was restored
            if newest is not None and due.not_before is not None:
                await self._remove(newest, answer_by)  # before its schedule fires
            changed = await self._changes.wait_until_visible(message, answer_by, include)
            if newest is not None:
                # Removed from the queue, so that no worker receives it only to drop it.
                await self._remove(newest, answer_by)
            await self._check_not_finished_before(message, sequence, changed)
            return changed
        if not_in_stream:
            raise StateUnavailable("The job's messages are being replicated or restored. Try again in a few seconds.")
        raise StateUnavailable("The job's state changes too fast to cancel it. Try again.")

    async def _running(self, due: Due) -> Progress | None:
        """Return the newest progress tick of this hand-over's attempt, or None if none is available."""
        try:
            return await latest_progress(self._changes.broker, due, timeout=1.0)
        except (BrokerUnavailable, JetStreamError):
            return None

    async def _remove(self, handed_over: Newest, answer_by: float) -> None:
        """Remove a canceled job's hand-over from its queue.

        Waits until `answer_by` at most. A slower removal continues after the response.
        """
        removal = self._spawn(self._removal(handed_over))
        await asyncio.wait({removal}, timeout=max(0.0, answer_by - asyncio.get_running_loop().time()))

    async def _removal(self, handed_over: Newest) -> None:
        deadline = asyncio.get_running_loop().time() + REMOVED_WITHIN_SECONDS
        async for _ in repeat(0.5, 0.5, until=deadline):
            try:
                await self._changes.broker.delete_of(subjects.JOBS, handed_over.subject, handed_over.sequence)
                return
            except (BrokerUnavailable, JetStreamError):
                continue

    async def _check_not_finished_before(self, message: AnyJobMessage, sequence: int | None, changed: Changed) -> None:
        """Raise Conflict if a terminal event of the job was stored before its cancel.

        Messages that followed `sequence` may have been recorded, and have left the stream, between our reads and our
        publish; the broker then accepts the cancel too. sequence: None for a predecessor that was gone from the stream.
        Raises StateUnavailable if this cannot be determined.
        """
        job = changed.job
        if changed.recorded and job.run == message.run and job.status != "canceled":
            raise Conflict(FINISHED.format(job.status))
        if changed.queried:
            return
        if sequence is None or not await self._changes.status.is_unrecorded(sequence):
            raise StateUnavailable(
                "It cannot be determined now whether the job finished before it was canceled. "
                "Get the job in a few seconds."
            )


def canceled(
    due: Due, sequence: int | None, job: Snapshot, tick: Progress | None = None, traceparent: str | None = None
) -> Canceled:
    """Build the message that cancels the job.

    sequence: the stream sequence of `due`, None if it is gone from the stream. tick: the newest progress tick of the
    running attempt, if one is known.
    """
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
