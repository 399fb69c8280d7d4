"""Records events in batches: one statement writes the highest rank of each job; acknowledgements follow its commit.

Each message is acknowledged separately: two stores can share one durable consumer, and an ack-all would also
acknowledge the messages of the other store.
"""

import asyncio
import itertools
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
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.micro import Counters
from heimdex_status_store import queries
from heimdex_status_store.callback_outbox import AGAIN_SECONDS, CallbackOutbox, needs_callback
from heimdex_status_store.claims import remove_claim
from heimdex_status_store.database import OUTAGE, UNRECORDABLE, Database
from heimdex_status_store.projection import ahead, job_rows
from heimdex_status_store.queries import WriteResult

#: Maximum messages in one statement. Larger batches gain little and increase the cost of one bad message.
MAX_BATCH: Final = 500
#: Maximum bytes of the messages in one statement, of which Postgres and this process hold several copies. With large
#: parameters and outputs, 500 messages have 70 MB.
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
#: After a batch of at least BUSY messages, the recorder waits for GATHER_SECONDS, so that several hand-overs of one job
#: update its row only once.
BUSY: Final = 16
GATHER_SECONDS: Final = 0.01
#: Maximum messages held from each stream, waiting or being written.
CAPACITY: Final = 2000
#: Maximum bytes of these. It is twice a prime number: a pull request for half of it ends with a status, and not with a
#: message that fills it exactly, after which the server says nothing.
CAPACITY_BYTES: Final = 2 * 16_777_213
#: The form of an acknowledgement's subject, with and without domain and account. A reply subject taken from a message
#: must match it before anything is published to it.
_ACK_SUBJECT: Final = re.compile(rf"\$JS\.ACK\.([^\s*>]+\.)?{subjects.JOBS}\.[^\s*>]+")

#: An attempt event that arrives before its hand-over is redelivered after this delay; after many deliveries, after a
#: longer one.
EARLY_DELAY_SECONDS: Final = 0.1
EARLY_DELAY_AFTER_MANY_SECONDS: Final = 1.0
MANY_DELIVERIES: Final = 50
#: Deliveries after which an early attempt event is acknowledged unrecorded: its job may not be one of ours. They take
#: more than a minute, because the messages of a killed store are redelivered only after 30 s.
MAX_DELIVERIES_SEEN: Final = 130

Decode = Callable[[str, bytes], AnyMessage | CallbackResult]


class _Held:
    """A decoded event, its delivery, and the consumer that it came from."""

    __slots__ = ("event", "msg", "puller")

    def __init__(self, event: AnyMessage | CallbackResult, msg: Delivery, puller: PullConsumer) -> None:
        self.event = event
        self.msg = msg
        self.puller = puller


class Recorder:
    """Pulls from the four event streams and writes to one database. capacity: as CAPACITY."""

    def __init__(
        self,
        holder: Holder,
        database: Database,
        dead_letters: DeadLetters,
        counters: Counters,
        log: Logger,
        ack_wait_seconds: float = 30.0,
        capacity: int = CAPACITY,
    ) -> None:
        self._capacity = capacity
        self._ack_wait_seconds = ack_wait_seconds
        self._holder = holder
        self._broker = holder.broker
        self._topology = holder.topology
        self._database = database
        self._dead_letters = dead_letters
        self._counters = counters
        self._log = log
        self._waiting: list[_Held] = []
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        #: The last logged reason why an event could not be recorded; each reason is logged once.
        self._logged_reason = ""
        self._callbacks = CallbackOutbox(holder.broker, log)
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._pullers: list[PullConsumer] = [
            self._puller(subjects.JOBS, messages.decode_job),
            self._puller(subjects.ATTEMPTS, messages.decode_attempt),
            self._puller(subjects.PROGRESS, messages.decode_progress),
            self._puller(subjects.CALLBACKS, callbacks.decode_result),
        ]

    async def start(self) -> None:
        """Start pulling from all streams."""
        for puller in self._pullers:
            await puller.start()

    def reset(self) -> None:
        """Renew the pull requests after a reconnection."""
        for puller in self._pullers:
            puller.reset()

    async def run(self) -> None:
        """Record the events that arrive, until stopped."""
        busy = False
        while not self._stopping.is_set():
            await self._arrived.wait()
            if busy and len(self._waiting) < MAX_BATCH:
                await asyncio.sleep(GATHER_SECONDS)
            count = batch_length([len(held.msg.data) for held in self._waiting[:MAX_BATCH]])
            batch = self._waiting[:count]
            del self._waiting[:count]
            if not self._waiting:
                self._arrived.clear()
            busy = len(batch) >= BUSY
            if batch:
                await self._record(batch)

    async def stop(self, deadline: float) -> None:
        """Stop pulling, then write the events that have arrived, as long as Postgres is available.

        `deadline` is in event-loop time.
        """
        await asyncio.gather(*(puller.stop() for puller in self._pullers))
        async for _ in repeat(0.01, 0.01, until=deadline):
            if not self._database.connected or not any(puller.held for puller in self._pullers):
                break
        self._stopping.set()
        self._arrived.set()

    def _puller(self, stream: str, decode: Decode) -> PullConsumer:
        def deliver(msg: Delivery) -> None:
            try:
                event = decode(msg.subject, msg.data)
            except UnusableMessage as error:
                self._store_dead_letter(msg, puller, str(error))
                return
            msg.hold()
            self._waiting.append(_Held(event, msg, puller))
            self._arrived.set()

        puller = PullConsumer(
            self._holder,
            stream,
            subjects.STATUS_STORE,
            self._capacity,
            self._ack_wait_seconds,
            deliver,
            self._log,
            capacity_bytes=CAPACITY_BYTES,
        )
        return puller

    def _store_dead_letter(self, msg: Delivery, puller: PullConsumer, reason: str) -> None:
        async def store() -> None:
            try:
                await self._dead_letters.store(msg, reason)
            finally:
                puller.release(1, msg.size)

        self._spawn(store())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)

    async def _record(self, batch: list[_Held]) -> None:
        """Write and acknowledge one batch. During an outage of Postgres this retries, and the leases are renewed."""
        async for _ in repeat(0.1, 1.0, stop=self._stopping):
            if self._stopping.is_set():
                return  # the events are redelivered to another store after their ack wait
            started = time.monotonic_ns()
            events = [held.event for held in batch]
            payloads = [held.msg.data for held in batch]
            try:
                written = await self._database.run(lambda connection: write(connection, events, payloads))  # noqa: B023
            except OUTAGE:
                continue
            except (asyncpg.PostgresError, *UNRECORDABLE) as error:
                await self._narrow(batch, error)
                return
            self._logged_reason = ""
            spent = (time.monotonic_ns() - started) // len(batch)
            self._counters.count(spent, units=len(batch))
            await self._acknowledge(batch, written)
            return

    async def _narrow(self, batch: list[_Held], error: Exception) -> None:
        """Halve a failed batch until the message that cannot be recorded is alone, so that it does not block others.

        If the message itself is the cause, it becomes a dead letter. Other errors of Postgres (an unreadable disk, the
        schema of another application) must not lose an event, so the message is redelivered.
        """
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._record(batch[:middle])
            await self._record(batch[middle:])
            return
        held, reason = batch[0], f"{type(error).__name__}: {error}"
        self._counters.count(0, str(error))
        if isinstance(error, UNRECORDABLE):
            self._store_dead_letter(held.msg, held.puller, f"Postgres refused it: {reason}")
            return
        if self._logged_reason != reason:
            self._logged_reason = reason
            self._log.error("not_recorded_yet", message="Postgres failed: the event will be redelivered", error=reason)
        held.msg.nak(AGAIN_SECONDS)
        held.puller.release(1, held.msg.size)

    async def _acknowledge(self, batch: list[_Held], written: WriteResult) -> None:
        await self._topology.until_known(self._stopping)
        settled: dict[PullConsumer, list[int]] = {}
        for held in batch:
            self._acknowledge_predecessor(held)
            redeliver = self._is_early(held, written)
            if isinstance(held.event, Canceled) and held.msg.is_current:
                redeliver = not await self._delete_predecessors(held.event)
                if not redeliver:
                    self._spawn(remove_claim(self._broker, held.event.job_id))
            if (
                needs_callback(held.event)
                and not redeliver
                and (held.event.job_id, held.event.step) not in written.strays
            ):
                # In the background: a stream that accepts no callbacks must not delay jobs without a callback.
                self._spawn(self._publish_callback(held, held.event))
                continue
            if not redeliver:
                held.msg.ack()
            elif held.msg.metadata.num_delivered > MANY_DELIVERIES:
                held.msg.nak(EARLY_DELAY_AFTER_MANY_SECONDS)
            else:
                held.msg.nak(EARLY_DELAY_SECONDS)
            settled.setdefault(held.puller, []).append(held.msg.size)
        for puller, sizes in settled.items():
            puller.release(len(sizes), sum(sizes))

    @staticmethod
    def _acknowledge_predecessor(held: _Held) -> None:
        """Acknowledge the predecessor of a message, before the message itself (see messages.Follows).

        The worker that published the message may have been killed before it acknowledged the predecessor.
        """
        event = held.event
        predecessor = None if isinstance(event, (Progress, AttemptFailed, CallbackMessage)) else event.follows
        if predecessor and _ACK_SUBJECT.fullmatch(predecessor.ack):
            held.msg.ack_predecessor(predecessor.ack)

    async def _publish_callback(self, held: _Held, end: End) -> None:
        """Publish the due callback, then acknowledge the terminal event. If that fails, the event is redelivered."""
        try:
            await self._topology.until_known(self._stopping)
            # Without the gateways' consumer, the stream would drop the callback.
            whole = self._topology.problem_of(subjects.CALLBACKS) is None
            stored = whole and not self._stopping.is_set() and await self._callbacks.publish(end)
            if stored:
                held.msg.ack()
            else:
                held.msg.nak(AGAIN_SECONDS)
        finally:
            held.msg.let_go()
            held.puller.release(1, held.msg.size)

    async def _delete_predecessors(self, canceled: Canceled) -> bool:
        """Delete the messages that a cancel follows. Returns False if that is not possible now.

        The worker of the predecessor may not have received the cancel, and has not acknowledged the predecessor. After
        the cancel has left the stream, the predecessor would be the job's last message again, and NATS would accept a
        late hand-over of that worker.
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
        """The sequence of the message that NATS published for a canceled schedule, or None.

        This happens if the cancel did not remove the schedule before its time.
        """
        last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(canceled.job_id))
        try:
            message = None if last is None else messages.decode_job(last.subject, last.data)
        except UnusableMessage:
            return None
        fired = isinstance(message, Due) and message.run == canceled.run and message.step < canceled.step
        return last.sequence if last is not None and fired else None

    @staticmethod
    def _is_early(held: _Held, written: WriteResult) -> bool:
        """Whether this is an event of an attempt whose hand-over is not recorded yet, but may still arrive."""
        event = held.event
        if not (written.early or written.ahead) or not isinstance(event, (Progress, AttemptFailed)):
            return False
        if event.job_id not in written.early and (event.job_id, event.step) not in written.ahead:
            return False
        return held.msg.metadata.num_delivered < MAX_DELIVERIES_SEEN


def batch_length(sizes: Sequence[int]) -> int:
    """Return how many of the first messages, of these sizes in bytes, are written in one statement: one at least."""
    totals = itertools.accumulate(sizes)
    return max(1, sum(1 for _ in itertools.takewhile(lambda total: total <= MAX_BATCH_BYTES, totals)))


async def write(
    connection: asyncpg.Connection, events: Sequence[AnyMessage | CallbackResult], payloads: Sequence[bytes]
) -> WriteResult:
    """Write one batch; acknowledging it is left to the caller. Results of callbacks are added only to the history.

    payloads: what each event was decoded from. Raises asyncpg's errors, and one of UNRECORDABLE for events that
    Postgres can never hold.
    """
    both = zip(events, payloads, strict=True)
    arrived = [(event, data) for event, data in both if not isinstance(event, CallbackMessage)]
    job_events: list[AnyMessage] = [event for event, _ in arrived]
    if len(job_events) < len(events):
        callback_rows = [callback_row(event) for event in events if isinstance(event, CallbackMessage)]
        await queries.record_callbacks(connection, callback_rows)
        if not job_events:
            return WriteResult(0, frozenset())
    early = ahead(job_events)
    if early:
        arrived = [(event, data) for event, data in arrived if (event.job_id, event.step) not in early]
    rows = job_rows([event for event, _ in arrived], [data for _, data in arrived])
    written = await queries.record(connection, rows, event_rows(job_events))
    # A callback reports the recorded terminal state of a run, not a later terminal event of the same run.
    ends = [event for event in job_events if needs_callback(event)]
    strays = await queries.strays(connection, ends) if ends else written.strays
    return msgspec.structs.replace(written, ahead=early, strays=strays)
