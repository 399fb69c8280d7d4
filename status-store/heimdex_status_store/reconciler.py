"""Repairs either store from the other: compares the unfinished jobs in Postgres with the stream, for good.

A job whose messages are gone (an empty JetStream volume, a removed consumer, a limit that somebody set) is published
again from its row. A database that was emptied is filled again by reading the stream: a replay through the durable
would mean deleting it, and with it what only it holds. A message that NATS will not deliver any more, since somebody
limited its deliveries, is put at the end of its queue (`undeliverable`).
"""

import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, Superseded, UnusableMessage
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyJobMessage, AnyMessage, Due, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store import queries
from heimdex_status_store.callback_outbox import CallbackOutbox
from heimdex_status_store.database import OUTAGE, Database
from heimdex_status_store.projection import job_rows
from heimdex_status_store.queries import StreamSeen, Unfinished
from heimdex_status_store.undeliverable import Undeliverable

#: How often it looks whether either store was replaced.
LOOK_SECONDS: Final = 5.0
#: Rows compared at a time. Where neither store was replaced, one page a look: a backlog of a million rows must not
#: cost a core.
PAGE: Final = 500
#: Rows of a page that are compared at the same time.
AT_ONCE: Final = 20
#: A row that was just written is on its way; only one that has rested this long can be stuck.
REST: Final = timedelta(seconds=60)


class Reconciler:
    """Of one status store; several may sweep at once, since the broker accepts one successor only."""

    def __init__(
        self, broker: Broker, topology: Topology, database: Database, publisher: Publisher, log: Logger
    ) -> None:
        self._broker = broker
        self._topology = topology
        self._database = database
        self._publisher = publisher
        self._log = log
        self._owed = CallbackOutbox(broker, log)
        self._undeliverable = Undeliverable(broker, publisher, self._record, self._owed, log)
        self._after: str | None = None
        #: The streams that were removed or changed since the last look.
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        topology.on_damage.append(self._on_damage)

    async def run(self) -> None:
        """Sweep until cancelled; an outage of either store only delays it."""
        await self._undeliverable.start(self._wake)
        while True:
            changed, self._changed = self._changed, set()
            self._wake.clear()
            try:
                await self._look(changed)
            except (*OUTAGE, BrokerUnavailable, JetStreamError) as error:
                self._changed |= changed
                self._log.debug("sweep_delayed", reason=str(error))
            except Exception:
                self._log.exception("sweep_broken", message="a sweep ended in a defect; the next one tries again")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _on_damage(self, changed: frozenset[str]) -> None:
        self._changed |= changed
        self._wake.set()

    async def _look(self, changed: set[str]) -> None:
        stream = await self._broker.api(f"STREAM.INFO.{subjects.JOBS}")
        created, durables = str(stream["created"]), self._topology.durables_created()
        seen = await self._database.run(queries.stream_seen)
        # What this store does not know by name may be another version's: it says nothing.
        made_again = {name for name, at in durables.items() if seen is not None and seen.durables.get(name, at) != at}
        jobs_lost = subjects.JOBS in changed or any(name.startswith(f"{subjects.JOBS}.") for name in made_again)
        callbacks_lost = subjects.CALLBACKS in changed or f"{subjects.CALLBACKS}.{subjects.GATEWAY}" in made_again
        if seen is None or jobs_lost or (stream["state"]["messages"] and await self._database.run(queries.has_no_jobs)):
            # This database has never seen the stream: it is new, or was emptied. Or the store's own consumer is another
            # one: what the one before had not brought may be in the stream still.
            await self._refill(stream["state"])
        await self._undeliverable.settle()
        new_stream = seen is None or seen.created != created
        left = 0
        if new_stream or jobs_lost:
            # This stream is not the one that the rows were recorded from, or has lost some of it.
            after: str | None = None
            while True:
                after, missed = await self._compare_page(after, None)
                left += missed
                if after is None:
                    break
        else:
            self._after, _ = await self._compare_page(self._after, REST)
        if seen is not None and (new_stream or callbacks_lost):  # a new database owes nothing
            cause = durables.get(f"{subjects.CALLBACKS}.{subjects.GATEWAY}", created)
            left += await self._owed.restore(self._database, cause)
        if left:
            # Look again: the mark stays away.
            self._changed |= changed
            return
        now_seen = StreamSeen(created, {**(seen.durables if seen else {}), **durables})
        if seen != now_seen:
            await self._database.run(lambda connection: queries.mark_stream_seen(connection, now_seen))

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
        outcomes: list[bool | None] = []
        for first in range(0, len(page), AT_ONCE):
            outcomes += await asyncio.gather(*(self._restore_if_gone(row) for row in page[first : first + AT_ONCE]))
        if restored := outcomes.count(True):
            self._log.warning("jobs_restored", message="published jobs again whose messages were gone", count=restored)
        return (page[-1].job_id if len(page) == PAGE else None), outcomes.count(None)

    async def _restore_if_gone(self, row: Unfinished) -> bool | None:
        """True: published again. False: nothing to do. None: it could not be published now."""
        last_stored = await self._publisher.last(row.job_id)
        if last_stored is not None:
            await self._undeliverable.suspect(row, last_stored)
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
        again = restored(last, now)
        try:
            await self._publisher.publish(again, expected=0, deadline=asyncio.get_running_loop().time() + 5)
        except Superseded:
            return False  # another store was faster
        except (BrokerUnavailable, Refused) as error:
            self._log.warning("job_not_restored_yet", job_id=row.job_id, reason=str(error))
            return None
        self._log.info("job_restored", job_id=row.job_id, stage=again.stage, step=again.step)
        return True


def restored(last: Due, row: Unfinished) -> Due:
    """The message that brings a job back whose messages are gone. last: its newest one that is recorded."""
    return msgspec.structs.replace(
        last,
        step=row.step + 1,
        at=max(messages.now(), row.updated_at),
        reason="restored",
        # Being lost with the stream is no attempt; those that ended in an error stay counted.
        attempts=max(last.attempts, row.failed_attempts),
        progress=min(99, row.progress),
        started=last.started or row.started,
        follows=None,
        trace=tracing.child(last.trace),
    )
