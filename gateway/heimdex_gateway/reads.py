"""Finds a job, whatever is down but NATS: Postgres where it is up to date, the stream where it is not."""

import msgspec

from heimdex_contracts import lifecycle, messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Due
from heimdex_contracts.runtime.broker import Broker, JetStreamError
from heimdex_gateway.database import Database, DatabaseUnavailable
from heimdex_gateway.freshness import Freshness, recorded

NATS_DOWN = "NATS cannot be reached, and the job's state cannot be told without it. Try again in a few seconds."
BOTH_NEEDED = (
    "Postgres cannot be reached, and the stream alone cannot tell this job's state. Try again in a few seconds."
)


class Unanswerable(HeimdexError):
    """The answer cannot be had now, or might be older than one already given; the text says why."""


class _InStream(msgspec.Struct, frozen=True):
    message: AnyJobMessage
    sequence: int
    tick: messages.Progress | None
    tick_sequence: int

    def view(self) -> Snapshot:
        seen = lifecycle.snapshot(self.message)
        return lifecycle.merge(seen, lifecycle.snapshot(self.tick)) if self.tick else seen


class Reads:
    """Of one gateway."""

    def __init__(self, broker: Broker, database: Database) -> None:
        self._broker = broker
        self._database = database
        self._freshness = Freshness(broker)

    async def job(self, job_id: str) -> Snapshot | None:
        """The job, or None where there is no such job. Raises Unanswerable, within 5 s."""
        suffices = await self._freshness.postgres_suffices()
        try:
            if not suffices:
                return await self._from_both(job_id)
            row = await self._database.job(job_id)
            return row if row is not None else await self._without_row(job_id)
        except DatabaseUnavailable:
            return await self._from_stream(job_id)

    async def _from_both(self, job_id: str) -> Snapshot | None:
        """The higher rank of both: the stream first, since an event leaves it only once Postgres has it."""
        try:
            found = await self._look(job_id)
        except Unanswerable:
            row = await self._database.job(job_id)
            if row is not None and row.ended:
                return row  # nothing comes after the end
            raise
        row = await self._database.job(job_id)
        if found is None:
            return row
        self._tell(found)
        return found.view() if row is None else lifecycle.merge(found.view(), row)

    async def _without_row(self, job_id: str) -> Snapshot | None:
        """Postgres answers, but has no row: not recorded yet, or never sent, or the database was emptied."""
        found = await self._look(job_id)
        if found is None:
            # It was recorded between the two looks, or there is no such job.
            return await self._database.job(job_id)
        if await self._never_recorded(found):
            # Its lowest state: whatever Postgres tells next is no older, also through another gateway.
            job = found.message
            first = Due(
                job_id=job.job_id,
                type=job.type,
                step=0,
                created_at=job.created_at,
                at=job.created_at,
                stage="none",
                reason="submitted",
            )
            return lifecycle.snapshot(first)
        row = await self._database.job(job_id)
        if row is not None:
            return row  # it was recorded between our looks
        self._tell(found)
        return found.view()

    async def _never_recorded(self, found: _InStream) -> bool:
        first = found.sequence if found.message.follows is None else found.message.follows.sequence
        try:
            state = await recorded(self._broker, subjects.JOBS)
        except (BrokerUnavailable, JetStreamError):
            raise Unanswerable(NATS_DOWN) from None
        return first > state.floor

    async def _from_stream(self, job_id: str) -> Snapshot:
        """Postgres is away: the stream's answer, where that cannot be older than what Postgres has told."""
        found = await self._look(job_id)
        if found is None:
            raise Unanswerable(BOTH_NEEDED)
        view = found.view()
        if not view.ended and found.tick is None:
            # A tick in the stream is the newest ever told. Without one, Postgres may have told a later one, which is
            # gone by now, unless it had not even recorded the hand-over to this stage.
            try:
                state = await recorded(self._broker, subjects.JOBS)
            except (BrokerUnavailable, JetStreamError):
                raise Unanswerable(NATS_DOWN) from None
            if not state.has_not(found.sequence):
                raise Unanswerable(BOTH_NEEDED)
        self._tell(found)
        return view

    def _tell(self, found: _InStream) -> None:
        self._freshness.told(subjects.JOBS, found.sequence)
        if found.tick:
            self._freshness.told(subjects.PROGRESS, found.tick_sequence)

    async def _look(self, job_id: str) -> _InStream | None:
        """The job's newest message, with the newest tick of the same step. Raises Unanswerable where NATS is away."""
        try:
            # The tick first: it is then of this message's step or of an older one, never of one that we do not see.
            newest = subjects.progress_subject("*", job_id)
            tick = await self._broker.last_message(subjects.PROGRESS, newest, timeout=1.0)
            last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id), timeout=1.0)
            if last is None:
                return None
            message = messages.decode_job(last.subject, last.data)
        except (BrokerUnavailable, JetStreamError):
            raise Unanswerable(NATS_DOWN) from None
        except UnusableMessage:
            return None  # a stranger's: its consumers set it aside
        progress = None
        if tick is not None:
            try:
                progress = messages.decode_progress(tick.subject, tick.data)
            except UnusableMessage:
                progress = None
            if progress is not None and progress.step != message.step:
                progress = None
        return _InStream(message, last.sequence, progress, tick.sequence if tick else 0)
