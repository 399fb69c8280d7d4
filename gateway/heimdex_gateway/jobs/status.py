"""Finds a job, whatever is down but NATS. No answer is older than one already given, by whichever gateway.

A hand-over is in the stream until Postgres has it. So whoever reads the stream first and then Postgres sees every one
that was published before, and tells the higher of both. A completed job needs no look at the stream: nothing follows.

A tick counts once Postgres has it: its stream is in memory, and what was told from there could be gone a moment later.
Only where Postgres has lost a hand-over that it had, its ticks are all that is left of what was told.
"""

import msgspec

from heimdex_contracts import lifecycle, messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable, JobQuery
from heimdex_gateway.jobs.store_progress import ConsumerPosition, consumer_position

NATS_DOWN = "NATS cannot be reached, and the job's state cannot be told without it. Try again in a few seconds."
BOTH_NEEDED = (
    "Postgres cannot be reached, and the stream alone cannot tell this job's state. Try again in a few seconds."
)


class JobNotFound(HeimdexError):
    """The tenant has no such job."""

    def __init__(self) -> None:
        super().__init__("Job not found")


class StateUnavailable(HeimdexError):
    """The answer cannot be had now, or might be older than one already given; the text says why."""


class Unreadable(StateUnavailable):
    """The newest message on the job's subjects is not one of ours."""


class Newest(msgspec.Struct, frozen=True):
    """A job's newest message in the stream: `sequence` and `subject` say where it lies."""

    message: AnyJobMessage
    sequence: int
    subject: str

    def view(self) -> Snapshot:
        """The job as this message alone shows it."""
        return lifecycle.snapshot(self.message)


class StatusReader:
    """Of one gateway; remembers nothing, so that two of them, or a new one, tell the same."""

    def __init__(self, broker: Broker, database: Database) -> None:
        self._broker = broker
        self._database = database

    async def job(self, job_id: str, tenant: str) -> Snapshot | None:
        """The job, or None where this tenant has no such job. Raises StateUnavailable, within 5 s.

        Another tenant's job is looked for in the same places, and found in none of them: every answer, also the one
        that it cannot be told now, is that of a job that never was.
        """
        try:
            row = await self._database.job(job_id, tenant)
            if row is not None and row.status == "completed":
                return row
            return await self._from_both(job_id, tenant, row)
        except DatabaseUnavailable:
            return await self._from_stream(job_id, tenant)

    async def job_and_newest(self, job_id: str, tenant: str) -> tuple[Snapshot | None, Newest | None]:
        """As `job`, with the job's newest message in the stream, which is read once. Raises StateUnavailable.

        That message may be a leftover, which a frozen status store has not acknowledged while another one has recorded
        all that follows it. So it is read first: the job is then seen to have gone on, or to be in a terminal state.
        """
        try:
            newest = await self._newest(job_id)
        except StateUnavailable:
            job = await self.job(job_id, tenant)
            if job is None or job.ended:
                return job, None
            raise
        own = newest if newest is not None and newest.message.tenant == tenant else None
        try:
            return await self._with_rows(job_id, tenant, own), own
        except DatabaseUnavailable:
            return await self._from_stream(job_id, tenant), own

    async def jobs(self, query: JobQuery, tenant: str) -> list[Snapshot]:
        """One page of this tenant's jobs as they are recorded, newest first, and one more where there is another page.

        Raises StateUnavailable without Postgres.
        """
        try:
            return await self._database.jobs(query, tenant)
        except DatabaseUnavailable:
            raise StateUnavailable("Postgres cannot be reached, and jobs are listed from it. Try again.") from None

    async def is_unrecorded(self, sequence: int) -> bool:
        """Whether the status store has surely recorded neither this message nor any later one."""
        return (await self._recorded()).has_not(sequence)

    async def leader_knows_recorded(self) -> bool:
        """Whether the stream's leader knows all that the status store can have recorded by now.

        In a replicated stream the store's consumer may be ahead of it for a moment: what is asked of the stream after
        a True is not older than what is asked of Postgres. Raises StateUnavailable where NATS is away.
        """
        if not self._broker.replicated:
            return True
        delivered = (await self._recorded()).delivered
        try:
            return await self._broker.last_sequence(subjects.JOBS) >= delivered
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None

    async def _from_both(self, job_id: str, tenant: str, before: Snapshot | None) -> Snapshot | None:
        try:
            found = await self._look(job_id, tenant)
        except StateUnavailable:
            if before is not None and before.ended:
                return before  # a next run could only have started through NATS
            raise
        return await self._with_rows(job_id, tenant, found)

    async def _with_rows(self, job_id: str, tenant: str, found: Newest | None) -> Snapshot | None:
        """The job as its row and its newest message in the stream, which was read before, show it together."""
        row = await self._database.job(job_id, tenant)
        if found is None or (row is not None and row.status == "completed"):
            return row
        view = found.view()
        if row is not None and row.ended and view.run <= row.run:
            return row  # what the stream says beside a recorded end is a left-over, or came too late
        if _lacks(row, found) and not view.ended and (await self._recorded()).has(found.sequence):
            row = await self._database.job(job_id, tenant)
            if _lacks(row, found) and (tick := await self._tick(found.message)) is not None:
                view = lifecycle.merge(view, lifecycle.snapshot(tick))  # the database was emptied
        return view if row is None else lifecycle.merge(view, row)

    async def _from_stream(self, job_id: str, tenant: str) -> Snapshot:
        """Postgres is away: the stream's answer, where that cannot be older than what Postgres has told."""
        if not await self.leader_knows_recorded():
            raise StateUnavailable(BOTH_NEEDED)
        found = await self._look(job_id, tenant)
        if found is None:
            raise StateUnavailable(BOTH_NEEDED)
        state = await self._recorded()
        unrecorded = state.has_not(found.sequence)
        if not unrecorded and not state.has(found.sequence):
            # It was delivered to a store that has not acknowledged it, while later ones were: it may be a left-over.
            raise StateUnavailable(BOTH_NEEDED)
        view = found.view()
        if not view.ended and not unrecorded:
            # Postgres may have told of its progress since; unless it had not even recorded the hand-over.
            raise StateUnavailable(BOTH_NEEDED)
        return view

    async def _recorded(self) -> ConsumerPosition:
        """How far the status store has got. Raises StateUnavailable where NATS is away."""
        try:
            return await consumer_position(self._broker, subjects.JOBS)
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None

    async def _tick(self, message: AnyJobMessage) -> Progress | None:
        """The newest of this very hand-over. Raises StateUnavailable where NATS is away."""
        newest = subjects.progress_subject("*", message.job_id)
        try:
            last = await self._broker.last_message(subjects.PROGRESS, newest, timeout=1.0)
            tick = None if last is None else messages.decode_progress(last.subject, last.data)
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None
        except UnusableMessage:
            return None
        return tick if tick is not None and tick.step == message.step else None

    async def _look(self, job_id: str, tenant: str) -> Newest | None:
        """The newest message of this tenant's job. Raises StateUnavailable where NATS is away."""
        try:
            newest = await self._newest(job_id)
        except Unreadable:
            return None  # its consumers set it aside
        return newest if newest is not None and newest.message.tenant == tenant else None

    async def _newest(self, job_id: str) -> Newest | None:
        """The newest message of this job, whosever it is. Raises StateUnavailable, Unreadable for a stranger's."""
        try:
            last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id), timeout=1.0)
            if last is None:
                return None
            return Newest(messages.decode_job(last.subject, last.data), last.sequence, last.subject)
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None
        except UnusableMessage:
            raise Unreadable("A stranger's message is in the way of this job. Try again in a few seconds.") from None


def _lacks(row: Snapshot | None, found: Newest) -> bool:
    """Whether Postgres does not have this message."""
    return row is None or row.step < found.message.step
