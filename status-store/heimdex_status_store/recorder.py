"""Records events: a batch of messages, the highest rank of each job, one statement, acknowledgements after its commit.

Each message is acknowledged by itself: with two stores on one durable, an ack-all would acknowledge the other's.
"""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from heimdex_contracts import callbacks, messages, subjects
from heimdex_contracts.callbacks import CallbackMessage, CallbackResult
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.history import callback_row, event_rows
from heimdex_contracts.messages import AnyMessage, AttemptFailed, Canceled, Due, End, Progress
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.micro import Counters
from heimdex_status_store import queries
from heimdex_status_store.callback_outbox import AGAIN_SECONDS, CallbackOutbox, needs_callback
from heimdex_status_store.database import OUTAGE, Database
from heimdex_status_store.projection import ahead, job_rows
from heimdex_status_store.queries import WriteResult

#: One statement's worth. Larger batches gain little and make one bad message cost more.
MAX_BATCH: Final = 500
#: After so many at once, the next ones are left to gather for a moment: a job's hand-overs then raise its row once.
BUSY: Final = 16
GATHER_SECONDS: Final = 0.01
#: Messages held from each stream, waiting or being written.
CAPACITY: Final = 2000
#: What an acknowledgement's subject looks like (with and without a domain and account): we publish to no other.
_ACK_SUBJECT: Final = re.compile(rf"\$JS\.ACK\.([^\s*>]+\.)?{subjects.JOBS}\.[^\s*>]+")

#: An attempt event that arrives before its hand-over is redelivered after this delay; after many deliveries, after a
#: longer one.
EARLY_DELAY_SECONDS: Final = 0.1
EARLY_DELAY_AFTER_MANY_SECONDS: Final = 1.0
MANY_DELIVERIES: Final = 50
#: How often it is let come again: its job may be a stranger's. A minute and more, as what a killed store held comes
#: again after 30 s.
MAX_DELIVERIES_SEEN: Final = 130

#: What is about the events themselves, so that they can never be recorded.
UNRECORDABLE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
)

Decode = Callable[[str, bytes], AnyMessage | CallbackResult]


class _Held:
    __slots__ = ("event", "msg", "puller")

    def __init__(self, event: AnyMessage | CallbackResult, msg: Delivery, puller: PullConsumer) -> None:
        self.event = event
        self.msg = msg
        self.puller = puller


class Recorder:
    """Takes from the streams of events, writes to one database."""

    def __init__(
        self,
        holder: Holder,
        database: Database,
        unusable: DeadLetters,
        counters: Counters,
        log: Logger,
        ack_wait_seconds: float = 30.0,
    ) -> None:
        self._ack_wait_seconds = ack_wait_seconds
        self._holder = holder
        self._broker = holder.broker
        self._topology = holder.topology
        self._database = database
        self._unusable = unusable
        self._counters = counters
        self._log = log
        self._waiting: list[_Held] = []
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        #: Why events are tried again; said once.
        self._said = ""
        self._owed = CallbackOutbox(holder.broker, log)
        self._asides: set[asyncio.Task[None]] = set()
        self._pullers: list[PullConsumer] = [
            self._puller(subjects.JOBS, messages.decode_job),
            self._puller(subjects.ATTEMPTS, messages.decode_attempt),
            self._puller(subjects.PROGRESS, messages.decode_progress),
            self._puller(subjects.CALLBACKS, callbacks.decode_told),
        ]

    async def start(self) -> None:
        """Begin to pull."""
        for puller in self._pullers:
            await puller.start()

    def reset(self) -> None:
        """After a reconnection: ask anew."""
        for puller in self._pullers:
            puller.reset()

    async def run(self) -> None:
        """Record what arrives, until stopped."""
        busy = False
        while not self._stopping.is_set():
            await self._arrived.wait()
            if busy and len(self._waiting) < MAX_BATCH:
                await asyncio.sleep(GATHER_SECONDS)
            batch = self._waiting[:MAX_BATCH]
            del self._waiting[:MAX_BATCH]
            if not self._waiting:
                self._arrived.clear()
            busy = len(batch) >= BUSY
            if batch:
                await self._record(batch)

    async def stop(self, deadline: float) -> None:
        """Pull no more, then write what has arrived, for as long as Postgres is there and the deadline allows."""
        await asyncio.gather(*(puller.stop() for puller in self._pullers))
        loop = asyncio.get_running_loop()
        while any(puller.held for puller in self._pullers) and self._database.connected and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._stopping.set()
        self._arrived.set()

    def _puller(self, stream: str, decode: Decode) -> PullConsumer:
        def deliver(msg: Delivery) -> None:
            try:
                event = decode(msg.subject, msg.data)
            except UnusableMessage as error:
                self._set_aside(msg, puller, str(error))
                return
            msg.hold()
            self._waiting.append(_Held(event, msg, puller))
            self._arrived.set()

        puller = PullConsumer(
            self._holder, stream, subjects.STATUS_STORE, CAPACITY, self._ack_wait_seconds, deliver, self._log
        )
        return puller

    def _set_aside(self, msg: Delivery, puller: PullConsumer, reason: str) -> None:
        async def aside() -> None:
            try:
                await self._unusable.store(msg, reason)
            finally:
                puller.release()

        self._beside(aside())

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _record(self, batch: list[_Held]) -> None:
        """Write and acknowledge one batch, however long Postgres is away; its leases are kept meanwhile."""
        delay = 0.1
        while not self._stopping.is_set():
            began = time.monotonic_ns()
            events = [held.event for held in batch]
            try:
                recorded = await self._database.run(lambda connection: write(connection, events))  # noqa: B023
            except OUTAGE:
                await asyncio.sleep(delay)
                delay = min(1.0, delay * 2)
                continue
            except (asyncpg.PostgresError, *UNRECORDABLE) as error:
                await self._narrow(batch, error)
                return
            self._said = ""
            spent = (time.monotonic_ns() - began) // len(batch)
            self._counters.count(spent, units=len(batch))
            await self._acknowledge(batch, recorded)
            return

    async def _narrow(self, batch: list[_Held], error: Exception) -> None:
        """One message that cannot be recorded must not block the others: halve the batch until it stands alone.

        It is set aside where it is the cause itself. What else Postgres may say (a disk that cannot be read, a schema
        that is another's) must cost no event, so it comes again then.
        """
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._record(batch[:middle])
            await self._record(batch[middle:])
            return
        held, reason = batch[0], f"{type(error).__name__}: {error}"
        self._counters.count(0, str(error))
        if isinstance(error, UNRECORDABLE):
            self._set_aside(held.msg, held.puller, f"Postgres refused it: {reason}")
            return
        if self._said != reason:
            self._said = reason
            self._log.error("not_recorded_yet", message="Postgres failed: the event is tried again", error=reason)
        held.msg.nak(AGAIN_SECONDS)
        held.puller.release()

    async def _acknowledge(self, batch: list[_Held], recorded: WriteResult) -> None:
        await self._topology.until_known(self._stopping)
        done: dict[PullConsumer, int] = {}
        for held in batch:
            self._acknowledge_predecessor(held)
            again = self._comes_again(held, recorded)
            if isinstance(held.event, Canceled) and held.msg.is_current:
                again = not await self._has_no_predecessor(held.event)
            if needs_callback(held.event) and not again and (held.event.job_id, held.event.step) not in recorded.strays:
                # In nobody's way: a stream that takes no callbacks must not hold up what has none.
                self._beside(self._publish_callback(held, held.event))
                continue
            if not again:
                held.msg.ack()
            elif held.msg.metadata.num_delivered > MANY_DELIVERIES:
                held.msg.nak(EARLY_DELAY_AFTER_MANY_SECONDS)
            else:
                held.msg.nak(EARLY_DELAY_SECONDS)
            done[held.puller] = done.get(held.puller, 0) + 1
        for puller, count in done.items():
            puller.release(count)

    @staticmethod
    def _acknowledge_predecessor(held: _Held) -> None:
        """First, for a worker killed between its publish and its ack (messages.Follows)."""
        event = held.event
        predecessor = None if isinstance(event, (Progress, AttemptFailed, CallbackMessage)) else event.follows
        if predecessor and _ACK_SUBJECT.fullmatch(predecessor.ack):
            held.msg.ack_predecessor(predecessor.ack)

    async def _publish_callback(self, held: _Held, end: End) -> None:
        """Acknowledge the end of a job once its callback is due; otherwise it comes again, and with it the callback."""
        try:
            await self._topology.until_known(self._stopping)
            # A callback for which no gateway's consumer is there would be dropped.
            whole = self._topology.problem_of(subjects.CALLBACKS) is None
            stored = whole and not self._stopping.is_set() and await self._owed.publish(end)
            if stored:
                held.msg.ack()
            else:
                held.msg.nak(AGAIN_SECONDS)
        finally:
            held.msg.let_go()
            held.puller.release()

    async def _has_no_predecessor(self, canceled: Canceled) -> bool:
        """Take away what a cancel follows; False where that cannot be done now.

        Its worker, which may not have heard of the cancel, has not acknowledged it. Once the cancel had left the
        stream, it would be its job's last message again, and the broker would accept the worker's late hand-over.
        """
        if canceled.follows is None:
            return True
        job, sequence = subjects.job_filter(canceled.job_id), canceled.follows.sequence
        try:
            await self._broker.delete_of(subjects.JOBS, job, sequence)
            while canceled.not_before is not None and (late := await self._fired_late(canceled)) is not None:
                await self._broker.delete_of(subjects.JOBS, job, late)
        except (BrokerUnavailable, JetStreamError):
            return False
        return True

    async def _fired_late(self, canceled: Canceled) -> int | None:
        """The sequence of what the server made of a schedule that was canceled, but not removed before its time."""
        last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(canceled.job_id))
        try:
            found = None if last is None else messages.decode_job(last.subject, last.data)
        except UnusableMessage:
            return None
        fired = isinstance(found, Due) and found.run == canceled.run and found.step < canceled.step
        return last.sequence if last is not None and fired else None

    @staticmethod
    def _comes_again(held: _Held, recorded: WriteResult) -> bool:
        """Whether this tells of an attempt whose hand-over is not recorded yet, and may still be."""
        event = held.event
        if not (recorded.early or recorded.ahead) or not isinstance(event, (Progress, AttemptFailed)):
            return False
        if event.job_id not in recorded.early and (event.job_id, event.step) not in recorded.ahead:
            return False
        return held.msg.metadata.num_delivered < MAX_DELIVERIES_SEEN


async def write(connection: asyncpg.Connection, events: Sequence[AnyMessage | CallbackResult]) -> WriteResult:
    """One batch, none of it acknowledged by this. What was called back belongs to the history alone.

    Raises asyncpg's errors, and one of UNRECORDABLE for what Postgres can never hold.
    """
    of_jobs = [event for event in events if not isinstance(event, CallbackMessage)]
    if len(of_jobs) < len(events):
        told = [callback_row(event) for event in events if isinstance(event, CallbackMessage)]
        await queries.record_callbacks(connection, told)
        if not of_jobs:
            return WriteResult(0, frozenset())
    told_ahead = ahead(of_jobs)
    in_time = [event for event in of_jobs if (event.job_id, event.step) not in told_ahead] if told_ahead else of_jobs
    recorded = await queries.record(connection, job_rows(in_time), event_rows(of_jobs))
    # Who asked to be called back is told how the job ended, and not what it did not end by.
    owed = [event for event in of_jobs if needs_callback(event)]
    strays = await queries.strays(connection, owed) if owed else recorded.strays
    return msgspec.structs.replace(recorded, ahead=told_ahead, strays=strays)
