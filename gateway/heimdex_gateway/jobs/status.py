"""Reads the state of a job, from the stream and from Postgres.

A job can be read during any outage except one of NATS. No response is older than one already given by any gateway.

A hand-over stays in the stream until Postgres has recorded it. A reader that reads the stream first and Postgres second
therefore sees every hand-over published before, and returns the later of the two states. A completed job needs no look
at the stream, because nothing follows it.

A progress tick counts only after Postgres has recorded it: its stream is kept in memory, so a tick returned from there
could be lost a moment later. There is one exception: if Postgres has lost a hand-over that it had recorded, the ticks
of that hand-over are the only trace of the progress already returned.
"""

from collections.abc import Collection

import msgspec

from heimdex_contracts import lifecycle, messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Due, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.latest_progress import latest_progress
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable, JobPage, JobQuery
from heimdex_gateway.jobs.store_progress import ConsumerPosition, consumer_position

NATS_DOWN = "NATS cannot be reached, and without it the job's state cannot be determined. Try again in a few seconds."
BOTH_NEEDED = (
    "Postgres cannot be reached, and the job's state cannot be determined from the stream alone. "
    "Try again in a few seconds."
)
NOT_LISTED = "Postgres cannot be reached, and jobs are listed from it. Try again."
NOT_OURS = "A message that is not ours is in the way of this job. Try again in a few seconds."


class JobNotFound(HeimdexError):
    """The tenant has no such job."""

    def __init__(self) -> None:
        super().__init__("Job not found")


class StateUnavailable(HeimdexError):
    """The job's state cannot be determined now, or it might be older than one already returned.

    The text gives the reason.
    """


class Unreadable(StateUnavailable):
    """The newest message on the job's subjects is not one of ours."""


class Newest(msgspec.Struct, frozen=True):
    """A job's newest message in the stream: `sequence` and `subject` say where it lies. payload: its JSON."""

    message: AnyJobMessage
    sequence: int
    subject: str
    payload: bytes

    def view(self) -> Snapshot:
        """The job as this message alone shows it."""
        return lifecycle.snapshot(self.message)


class StatusReader:
    """Reads job states for one gateway. It keeps no state, so that all gateways return the same."""

    def __init__(self, broker: Broker, database: Database) -> None:
        self._broker = broker
        self._database = database

    async def job(self, job_id: str, tenant: str, include: Collection[str] = ()) -> Snapshot | None:
        """The job, or None if this tenant has no such job. Raises StateUnavailable, within 5 s.

        include: as in Database.job. Another tenant's job behaves exactly like a job that does not exist, including the
        error when the state cannot be determined.
        """
        try:
            row = await self._database.job(job_id, tenant, include)
            if row is not None and row.status == "completed":
                return row
            return await self._from_both(job_id, tenant, row, include)
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

    async def jobs(self, query: JobQuery, tenant: str, include: Collection[str] = ()) -> JobPage:
        """One page of this tenant's jobs as they are recorded, newest first. include: as in Database.job.

        Raises StateUnavailable without Postgres.
        """
        try:
            return await self._database.jobs(query, tenant, include)
        except DatabaseUnavailable:
            raise StateUnavailable(NOT_LISTED) from None

    async def has_jobs(self, job_type: str, tenant: str) -> bool:
        """Whether this tenant has recorded jobs of this type. Raises StateUnavailable without Postgres."""
        try:
            return await self._database.has_jobs(job_type, tenant)
        except DatabaseUnavailable:
            raise StateUnavailable(NOT_LISTED) from None

    async def is_unrecorded(self, sequence: int) -> bool:
        """Whether it is certain that the status store has recorded neither this message nor any later one."""
        return (await self._position()).is_unrecorded(sequence)

    async def leader_knows_recorded(self) -> bool:
        """Whether the stream's leader has every message that the status store can have recorded by now.

        In a replicated stream the status store's consumer can be ahead of the leader for a moment. After True, a read
        of the stream is not older than a read of Postgres. Raises StateUnavailable if NATS is down.
        """
        if not self._broker.replicated:
            return True
        delivered = (await self._position()).delivered
        try:
            return await self._broker.last_sequence(subjects.JOBS) >= delivered
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None

    async def _from_both(
        self, job_id: str, tenant: str, before: Snapshot | None, include: Collection[str]
    ) -> Snapshot | None:
        try:
            newest = await self._newest_of(job_id, tenant)
        except StateUnavailable:
            if before is not None and before.ended:
                return before  # only NATS could have started another run
            raise
        return await self._with_rows(job_id, tenant, newest, include)

    async def _with_rows(
        self, job_id: str, tenant: str, newest: Newest | None, include: Collection[str] = ()
    ) -> Snapshot | None:
        """The job as its row and its newest message in the stream, which was read before, show it together."""
        row = await self._database.job(job_id, tenant, include)
        if newest is None or (row is not None and row.status == "completed"):
            return row
        view = newest.view()
        if row is not None and row.ended and view.run <= row.run:
            return row  # Postgres has a terminal state; the message in the stream is a leftover, or arrived too late
        due = newest.message
        if _lacks(row, newest) and isinstance(due, Due) and (await self._position()).is_recorded(newest.sequence):
            row = await self._database.job(job_id, tenant, include)
            if _lacks(row, newest) and (tick := await self._tick(due)) is not None:
                view = lifecycle.merge(view, lifecycle.snapshot(tick))  # the database was emptied
        return view if row is None else lifecycle.merge(view, row)

    async def _from_stream(self, job_id: str, tenant: str) -> Snapshot:
        """The state from the stream alone, while Postgres is down.

        Raises StateUnavailable if it might be older than a state returned from Postgres.
        """
        if not await self.leader_knows_recorded():
            raise StateUnavailable(BOTH_NEEDED)
        newest = await self._newest_of(job_id, tenant)
        if newest is None:
            raise StateUnavailable(BOTH_NEEDED)
        position = await self._position()
        unrecorded = position.is_unrecorded(newest.sequence)
        if not unrecorded and not position.is_recorded(newest.sequence):
            # A status store holds it unacknowledged, while later messages were acknowledged: it may be a leftover.
            raise StateUnavailable(BOTH_NEEDED)
        view = newest.view()
        if not view.ended and not unrecorded:
            # Later progress may have been returned from Postgres, because the hand-over may have been recorded.
            raise StateUnavailable(BOTH_NEEDED)
        return view

    async def _position(self) -> ConsumerPosition:
        """The position of the status store's consumer. Raises StateUnavailable if NATS is down."""
        try:
            return await consumer_position(self._broker, subjects.JOBS)
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None

    async def _tick(self, due: Due) -> Progress | None:
        """The newest progress tick of this hand-over, or None. Raises StateUnavailable if NATS is down."""
        try:
            return await latest_progress(self._broker, due, timeout=1.0)
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None

    async def _newest_of(self, job_id: str, tenant: str) -> Newest | None:
        """The newest message of this tenant's job, or None. Raises StateUnavailable if NATS is down."""
        try:
            newest = await self._newest(job_id)
        except Unreadable:
            return None  # its consumers store it as a dead letter
        return newest if newest is not None and newest.message.tenant == tenant else None

    async def _newest(self, job_id: str) -> Newest | None:
        """The newest message of this job, whichever tenant's. Raises StateUnavailable, Unreadable for one not ours."""
        try:
            last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id), timeout=1.0)
            if last is None:
                return None
            return Newest(messages.decode_job(last.subject, last.data), last.sequence, last.subject, last.data)
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None
        except UnusableMessage:
            raise Unreadable(NOT_OURS) from None


def _lacks(row: Snapshot | None, newest: Newest) -> bool:
    """Whether Postgres does not have this message."""
    return row is None or row.step < newest.message.step
