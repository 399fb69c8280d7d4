"""Repairs each store from the other: continuously compares the unfinished jobs in Postgres with the stream.

A job whose messages are gone (an empty JetStream volume, a removed consumer, a limit that an operator set) is published
again from its row. An emptied database is filled again by reading the stream directly: a replay through the durable
consumer would require its deletion, and the messages retained only for that consumer would be lost. A message that
NATS no longer delivers, because an operator limited its deliveries, is moved to the end of its queue (`undeliverable`).
"""

import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, patches, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, Superseded, UnusableMessage
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyJobMessage, AnyMessage, Due
from heimdex_contracts.runtime.backoff import set_within
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.latest_progress import latest_progress
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store import queries
from heimdex_status_store.callback_outbox import CallbackOutbox
from heimdex_status_store.database import OUTAGE, UNRECORDABLE, Database
from heimdex_status_store.projection import job_rows
from heimdex_status_store.queries import StreamSeen, Unfinished
from heimdex_status_store.recorder import MAX_BATCH_BYTES
from heimdex_status_store.refusals import Refusals
from heimdex_status_store.undeliverable import Undeliverable

#: Seconds between two checks whether either store was replaced.
CHECK_SECONDS: Final = 5.0
#: Rows compared at a time. If neither store was replaced, each check compares one page, so that a backlog of a million
#: rows does not occupy a core.
PAGE: Final = 500
#: Rows of a page that are compared concurrently.
AT_ONCE: Final = 20
#: A job whose row was written recently is making progress; only one unchanged for this long can be stuck.
REST: Final = timedelta(seconds=60)


class Reconciler:
    """The reconciler of one status store. Several can run at once, because NATS accepts one successor of a message.

    rest: as REST. check_seconds: as CHECK_SECONDS.
    """

    def __init__(
        self,
        broker: Broker,
        topology: Topology,
        database: Database,
        publisher: Publisher,
        refusals: Refusals,
        log: Logger,
        rest: timedelta = REST,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._rest = rest
        self._check_seconds = check_seconds
        self._broker = broker
        self._topology = topology
        self._database = database
        self._publisher = publisher
        self._log = log
        self._refusals = refusals
        self._callbacks = CallbackOutbox(broker, log)
        self._undeliverable = Undeliverable(broker, publisher, self._record, self._callbacks, log)
        self._after: str | None = None
        #: The streams that were removed or changed since the last check.
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        #: The stages without a queue that were logged.
        self._without_queue: set[str] = set()
        topology.on_damage.append(self._on_damage)

    async def run(self) -> None:
        """Reconcile until cancelled. An outage of either store only delays it."""
        await self._undeliverable.start(self._wake)
        while True:
            changed, self._changed = self._changed, set()
            self._wake.clear()
            try:
                await self._check(changed)
            except (*OUTAGE, BrokerUnavailable, JetStreamError) as error:
                self._changed |= changed
                self._log.debug("sweep_delayed", reason=str(error))
            except Exception:
                self._log.exception("sweep_broken", message="the reconciler failed with a bug; it will try again")
            await set_within(self._wake, self._check_seconds)

    def _on_damage(self, changed: frozenset[str]) -> None:
        self._changed |= changed
        self._wake.set()

    async def _check(self, changed: set[str]) -> None:
        stream = await self._broker.api(f"STREAM.INFO.{subjects.JOBS}")
        created, durables = str(stream["created"]), self._topology.durables_created()
        seen = await self._database.run(queries.stream_seen)
        # A consumer whose name was not recorded may belong to another version; it is ignored.
        recreated = {name for name, at in durables.items() if seen is not None and seen.durables.get(name, at) != at}
        jobs_lost = subjects.JOBS in changed or any(name.startswith(f"{subjects.JOBS}.") for name in recreated)
        callbacks_lost = subjects.CALLBACKS in changed or f"{subjects.CALLBACKS}.{subjects.GATEWAY}" in recreated
        if seen is None or jobs_lost or (stream["state"]["messages"] and await self._database.run(queries.has_no_jobs)):
            # Either this database has never seen the stream: it is new or was emptied. Or the store's own consumer was
            # recreated: messages that the former one had not delivered may still be in the stream.
            await self._refill(stream["state"])
        await self._undeliverable.settle()
        new_stream = seen is None or seen.created != created
        unpublished = 0
        if new_stream or jobs_lost:
            # The rows were recorded from another stream, or this one has lost messages.
            after: str | None = None
            while True:
                after, missed = await self._compare_page(after, None)
                unpublished += missed
                if after is None:
                    break
        else:
            self._after, _ = await self._compare_page(self._after, self._rest)
        if seen is not None and (new_stream or callbacks_lost):  # a new database has no due callbacks
            cause = durables.get(f"{subjects.CALLBACKS}.{subjects.GATEWAY}", created)
            unpublished += await self._callbacks.restore(self._database, cause)
        if unpublished:
            # Some could not be published: check again, and do not mark the stream as seen.
            self._changed |= changed
            return
        now_seen = StreamSeen(created, {**(seen.durables if seen else {}), **durables})
        if seen != now_seen:
            await self._database.run(lambda connection: queries.mark_stream_seen(connection, now_seen))

    async def _refill(self, state: dict[str, Any]) -> None:
        """Record every message that the stream still holds. A message that is already recorded changes nothing."""
        raised = size = 0
        batch: list[tuple[AnyJobMessage, bytes]] = []
        sequence = state["first_seq"]
        while sequence <= state["last_seq"]:
            stored = await self._broker.next_message(subjects.JOBS, "heimdex.jobs.*.*", sequence)
            if stored is None:
                break
            sequence = stored.sequence + 1
            try:
                batch.append((messages.decode_job(stored.subject, stored.data), stored.data))
            except UnusableMessage:
                continue  # its consumers move it to the dead letters
            size += len(stored.data)
            if len(batch) >= PAGE or size >= MAX_BATCH_BYTES:
                raised += await self._record(batch)
                batch, size = [], 0
        raised += await self._record(batch)
        if raised:
            self._log.warning("jobs_refilled", message="recorded jobs that were missing in Postgres", count=raised)

    async def _record(self, batch: list[tuple[AnyJobMessage, bytes]]) -> int:
        """Record messages with their payloads. Returns how many jobs were recorded or changed."""
        if not batch:
            return 0
        # Record their progress, too: a job that was reported as running must not be pending until its next tick.
        latest = await asyncio.gather(
            *(latest_progress(self._broker, event) for event, _ in batch if isinstance(event, Due))
        )
        ticks = [tick for tick in latest if tick is not None]
        events: list[AnyMessage] = [*(event for event, _ in batch), *ticks]
        payloads = [*(payload for _, payload in batch), *(messages.encode(tick) for tick in ticks)]
        try:
            rows = job_rows(events, payloads)
            recorded = await self._database.run(
                lambda connection: queries.record(connection, rows, event_rows(events), refill=True)
            )
        except UNRECORDABLE:
            if len(batch) == 1:
                return 0  # the recorder moves it to the dead letters
            middle = len(batch) // 2
            return await self._record(batch[:middle]) + await self._record(batch[middle:])
        return recorded.raised

    async def _compare_page(self, after: str | None, rest: timedelta | None) -> tuple[str | None, int]:
        """Publish the unfinished jobs of one page again that the stream does not hold.

        Returns the job id after which the next page starts (None: this was the last page), and how many jobs could not
        be published. rest: include only rows unchanged for this long; None: all rows.
        """
        page, more = await self._database.run(
            lambda connection: queries.unfinished(connection, after, rest, PAGE, queries.UNFINISHED_BYTES)
        )
        outcomes: list[bool | None] = []
        for first in range(0, len(page), AT_ONCE):
            outcomes += await asyncio.gather(*(self._restore_if_gone(row) for row in page[first : first + AT_ONCE]))
        if restored := outcomes.count(True):
            self._log.warning("jobs_restored", message="published jobs again whose messages were lost", count=restored)
        return (page[-1].job_id if more else None), outcomes.count(None)

    async def _restore_if_gone(self, row: Unfinished) -> bool | None:
        """Publish the job again if the stream holds no message of it.

        Returns True if it was published, False if there is nothing to do, None if it could not be published now.
        """
        last_stored = await self._publisher.last(row.job_id)
        if last_stored is not None:
            if not self._refusals.is_refused(row.job_id, row.step):
                await self._undeliverable.suspect(row, last_stored)
            return False
        # An unfinished job always has a message in the stream, unless it finished and was recorded since the page was
        # read.
        now = await self._database.run(lambda connection: queries.unfinished_row(connection, row.job_id))
        if now is None or now.step != row.step:
            return False
        try:
            stored = patches.whole(now.message, now.params)
            last = messages.decode_stored(stored)
            if last.job_id != row.job_id:
                raise UnusableMessage("its row has a message of another job")
        except UnusableMessage as error:
            self._log.error("job_not_restorable", job_id=row.job_id, reason=str(error))
            return False
        if not isinstance(last, Due):
            return False
        again = restored(last, now)
        payload = patches.patched(again, last, stored)
        if not await self._has_queue(again):
            return False
        try:
            deadline = asyncio.get_running_loop().time() + 5
            sequence = await self._publisher.publish(again, expected=0, deadline=deadline, payload=payload)
        except Superseded:
            return False  # another store published it first
        except (BrokerUnavailable, Refused) as error:
            self._log.warning("job_not_restored_yet", job_id=row.job_id, reason=str(error))
            return None
        if await self._database.run(lambda connection: queries.unfinished_row(connection, row.job_id)) is None:
            # It was canceled, and its cancel recorded and removed from the stream, since its row was read above.
            await self._broker.delete_of(subjects.JOBS, subjects.job_filter(row.job_id), sequence)
            return False
        self._log.info("job_restored", job_id=row.job_id, stage=again.stage, step=again.step)
        return True

    async def _has_queue(self, again: Due) -> bool:
        """Whether the stage of this message has a queue, or the message is scheduled for later.

        Without a queue, JetStream would drop the message as soon as it is recorded, and the job would be published
        again and again. It is published when a process declares the stage again; until then it can be canceled.
        """
        if again.not_before is not None and again.not_before > again.at:
            return True
        if await self._undeliverable.has_queue(again.stage):
            self._without_queue.discard(again.stage)
            return True
        if again.stage not in self._without_queue:
            self._without_queue.add(again.stage)
            self._log.warning(
                "stage_without_queue",
                message="jobs wait at a stage that no process declares any more: deploy the stage again, or cancel "
                "the jobs",
                stage=again.stage,
                job_id=again.job_id,
            )
        return False


def restored(last: Due, row: Unfinished) -> Due:
    """The message that restores a job whose messages were lost. last: the newest recorded message of the job."""
    return msgspec.structs.replace(
        last,
        step=row.step + 1,
        at=max(messages.now(), row.updated_at),
        reason="restored",
        # The loss of the stream is not an attempt. Attempts that failed stay counted.
        attempts=max(last.attempts, row.failed_attempts),
        progress=min(99, row.progress),
        started=last.started or row.started,
        follows=None,
        trace=tracing.child(last.trace),
    )
