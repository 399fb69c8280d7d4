"""Mends either store from the other: compares the unfinished jobs in Postgres with the stream, for good.

A job whose messages are gone (an empty JetStream volume) is published again from its row. A database that was emptied
is refilled by reading the stream: a replay through the durable would mean deleting it, and with it what only it holds.
"""

import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, Superseded, UnusableMessage
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyJobMessage, AnyMessage, Due, Progress
from heimdex_contracts.runtime.broker import Broker, JetStreamError
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.publishing import Publisher, Refused
from heimdex_status_store import queries
from heimdex_status_store.database import OUTAGE, Database
from heimdex_status_store.owed import Owed
from heimdex_status_store.queries import Unfinished
from heimdex_status_store.rows import job_rows

#: How often it looks whether either store was replaced.
LOOK_SECONDS: Final = 5.0
#: Rows compared at a time. Where neither store was replaced, one page a look: a backlog of a million rows must not
#: cost a core.
PAGE: Final = 500
#: A row that was just written is on its way; only one that has rested this long can be stuck.
REST: Final = timedelta(seconds=60)


class Sweep:
    """Of one status store; several may sweep at once, since the broker accepts one successor only."""

    def __init__(self, broker: Broker, database: Database, publisher: Publisher, log: Logger) -> None:
        self._broker = broker
        self._database = database
        self._publisher = publisher
        self._log = log
        self._owed = Owed(broker, log)
        self._after: str | None = None

    async def run(self) -> None:
        """Sweep until cancelled; an outage of either store only delays it."""
        while True:
            try:
                await self._look()
            except (*OUTAGE, BrokerUnavailable, JetStreamError) as error:
                self._log.debug("sweep_delayed", reason=str(error))
            except Exception:
                self._log.exception("sweep_broken", message="a sweep ended in a defect; the next one tries again")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        stream = await self._broker.api(f"STREAM.INFO.{subjects.JOBS}")
        created = str(stream["created"])
        seen = await self._database.run(queries.stream_seen)
        if seen is None or (stream["state"]["messages"] and await self._database.run(queries.has_no_jobs)):
            # This database has never seen the stream: it is new, or was emptied.
            await self._refill(stream["state"])
        if seen != created:
            # This stream is not the one that the rows were recorded from.
            after: str | None = None
            left = 0
            while True:
                after, missed = await self._compare_page(after, None)
                left += missed
                if after is None:
                    break
            if seen is not None:  # a new database owes nothing
                left += await self._owed.restore(self._database)
            if not left:  # otherwise look again: the mark stays away
                await self._database.run(lambda connection: queries.mark_stream_seen(connection, created))
        else:
            self._after, _ = await self._compare_page(self._after, REST)

    async def _refill(self, state: dict[str, Any]) -> None:
        """Record every message that the stream still holds; what is recorded already changes nothing."""
        found = 0
        batch: list[AnyJobMessage] = []
        sequence = state["first_seq"]
        while sequence <= state["last_seq"]:
            stored = await self._broker.next_message(subjects.JOBS, "heimdex.jobs.*.*", sequence)
            if stored is None:
                break
            sequence = stored.sequence + 1
            try:
                batch.append(messages.decode_job(stored.subject, stored.data))
            except UnusableMessage:
                continue  # its consumers set it aside
            if len(batch) >= PAGE:
                found += await self._record(batch)
                batch = []
        found += await self._record(batch)
        if found:
            self._log.warning("jobs_refilled", message="recorded jobs that Postgres did not know", count=found)

    async def _record(self, batch: list[AnyJobMessage]) -> int:
        if not batch:
            return 0
        # With what was told of their progress: a job that was seen to run must not be pending until its next tick.
        ticks = await asyncio.gather(*(self._tick(event) for event in batch if isinstance(event, Due)))
        events: list[AnyMessage] = [*batch, *(tick for tick in ticks if tick is not None)]
        recorded = await self._database.run(
            lambda connection: queries.record(connection, job_rows(events), event_rows(events))
        )
        return recorded.raised

    async def _tick(self, due: Due) -> Progress | None:
        """The newest of this very hand-over."""
        last = await self._broker.last_message(subjects.PROGRESS, subjects.progress_subject("*", due.job_id))
        try:
            tick = None if last is None else messages.decode_progress(last.subject, last.data)
        except UnusableMessage:
            return None
        return tick if tick is not None and tick.step == due.step else None

    async def _compare_page(self, after: str | None, rest: timedelta | None) -> tuple[str | None, int]:
        """Publish again the unfinished jobs of one page that the stream does not hold.

        Returns where the next page starts (None: this was the last), and how many could not be published yet.
        """
        page = await self._database.run(lambda connection: queries.unfinished(connection, after, rest, PAGE))
        outcomes = [await self._restore_if_gone(row) for row in page]
        if restored := outcomes.count(True):
            self._log.warning("jobs_restored", message="published jobs again whose messages were gone", count=restored)
        return (page[-1].job_id if len(page) == PAGE else None), outcomes.count(None)

    async def _restore_if_gone(self, row: Unfinished) -> bool | None:
        """True: published again. False: nothing to do. None: it could not be published now."""
        if await self._publisher.last(row.job_id) is not None:
            return False
        # An unfinished job always has a message; unless it ended, and was recorded, between our two looks.
        now = await self._database.run(lambda connection: queries.unfinished_row(connection, row.job_id))
        if now is None or now.step != row.step:
            return False
        try:
            last = messages.decode_job(now.subject, now.message.encode())
        except (UnusableMessage, msgspec.MsgspecError) as error:
            self._log.error("job_not_restorable", job_id=row.job_id, reason=str(error))
            return False
        if not isinstance(last, Due):
            return False
        again = msgspec.structs.replace(
            last,
            step=now.step + 1,
            at=messages.later_of(messages.now(), now.updated_at),
            reason="restored",
            # Being lost with the stream is no attempt; those that ended in an error stay counted.
            attempts=max(last.attempts, now.failed_attempts),
            progress=min(99, now.progress),
            started=last.started or now.started,
            follows=None,
            trace=tracing.child(last.trace),
        )
        try:
            await self._publisher.publish(again, expected=0, deadline=asyncio.get_running_loop().time() + 5)
        except Superseded:
            return False  # another store was faster
        except (BrokerUnavailable, Refused) as error:
            self._log.warning("job_not_restored_yet", job_id=row.job_id, reason=str(error))
            return None
        self._log.info("job_restored", job_id=row.job_id, stage=again.stage, step=again.step)
        return True
