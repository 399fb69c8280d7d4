"""Recovers messages that NATS no longer delivers, because an operator limited the number of deliveries (`max_deliver`).

Our own consumers have no such limit, because at the limit JetStream keeps the message without delivering it. If an
operator sets one, the topology check removes it within seconds. A message that has reached the limit by then is never
delivered by that consumer again. NATS publishes an advisory about each such message. A job that makes no progress
although workers wait for work is examined as well.

A message that only has to be recorded is recorded here. A message with work for a stage is published again at the end
of its queue, as the successor of the stuck message, which is then removed. NATS accepts only one successor, however
many stores try.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.messages import AnyJobMessage, Due
from heimdex_contracts.runtime.jetstream.connection import CONSUMER_NOT_FOUND, Broker, JetStreamError, Stored
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import ADVISORIES
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.subjects import NANOSECOND
from heimdex_status_store.callback_outbox import CallbackOutbox, needs_callback
from heimdex_status_store.queries import Unfinished

_ADVISED: Final = f"{ADVISORIES}.CONSUMER.MAX_DELIVERIES.*.*"
#: A job without progress for this many leases, while workers of its stage wait for work, is held by none of them.
LEASES: Final = 3
#: At least this long: a worker whose event loop is blocked reports nothing, and renews its leases for the 120 s that
#: HEIMDEX_BLOCKED_SECONDS has by default. A message that is moved under a running attempt discards its result.
SILENT_SECONDS: Final = 150.0
#: Maximum number of remembered suspects.
MAX_SUSPECTS: Final = 10_000
#: How long the state of a consumer is cached, so that a page of rows needs one request.
_STATE_SECONDS: Final = 1.0


class Advice(msgspec.Struct, frozen=True):
    """NATS's advisory about a message that it no longer delivers (io.nats.jetstream.advisory.v1.max_deliver)."""

    stream: str
    consumer: str
    stream_seq: int


class _Suspect(msgspec.Struct, frozen=True):
    """A job that makes no progress: the sequences of its newest message and tick, and when they were first seen."""

    sequence: int
    tick: int
    since: float


_advice: Final = msgspec.json.Decoder(Advice)


class Undeliverable:
    """Recovers undeliverable messages for one status store. record: writes messages with their payloads to Postgres."""

    def __init__(
        self,
        broker: Broker,
        publisher: Publisher,
        record: Callable[[list[tuple[AnyJobMessage, bytes]]], Awaitable[int]],
        callbacks: CallbackOutbox,
        log: Logger,
    ) -> None:
        self._broker = broker
        self._publisher = publisher
        self._record = record
        self._callbacks = callbacks
        self._log = log
        self._advised: set[Advice] = set()
        self._suspects: dict[str, _Suspect] = {}
        self._states: dict[str, tuple[float, dict[str, Any] | None]] = {}
        self._wake = asyncio.Event()

    async def start(self, wake: asyncio.Event) -> None:
        """Subscribe to the advisories. `wake` is set when there is a message to settle."""
        self._wake = wake
        await self._broker.nc.direct_subscribe(_ADVISED, self._on_advisory)

    def _on_advisory(self, _: bytes, __: bytes, data: bytes, ___: bytes) -> None:
        try:
            advice = _advice.decode(data)
        except msgspec.MsgspecError:
            return
        if advice.stream in {subjects.JOBS, subjects.CALLBACKS, subjects.ATTEMPTS}:
            self._advised.add(advice)
            self._wake.set()

    async def settle(self) -> None:
        """Settle all messages that NATS no longer delivers.

        Raises OUTAGE, BrokerUnavailable or JetStreamError; the rest is settled by the next call.
        """
        for advice in list(self._advised):
            await self._settle(advice)
            self._advised.discard(advice)

    async def suspect(self, row: Unfinished, last: Stored) -> None:
        """Examine a job without progress: settle its newest message if nobody holds it and it will not be delivered.

        This takes at least two calls, some leases apart, without a new message or tick of the job in between: a worker
        reports its progress several times a second. Raises the same errors as `settle`.
        """
        if await self._only_waits(row, last):
            return
        try:
            message = messages.decode_job(last.subject, last.data)
        except UnusableMessage:
            return
        recorded = row.step >= message.step
        consumer = subjects.STATUS_STORE
        if recorded:
            if not isinstance(message, Due) or row.in_back_off or last.subject.split(".")[2] == subjects.LATER:
                return
            consumer = message.stage
        state = await self._state(consumer)
        if state is None:
            return
        if state["delivered"]["stream_seq"] < last.sequence or not state["num_waiting"]:
            self._suspects.pop(row.job_id, None)
            return
        tick = await self._broker.last_message(subjects.PROGRESS, subjects.progress_subject("*", row.job_id))
        now, before = time.monotonic(), self._suspects.get(row.job_id)
        sequences = (last.sequence, tick.sequence if tick else 0)
        if before is None or (before.sequence, before.tick) != sequences:
            if len(self._suspects) < MAX_SUSPECTS:
                self._suspects[row.job_id] = _Suspect(*sequences, now)
            return
        if now - before.since > max(SILENT_SECONDS, LEASES * state["config"]["ack_wait"] / NANOSECOND):
            del self._suspects[row.job_id]
            await self._settle(Advice(subjects.JOBS, consumer, last.sequence))

    async def _only_waits(self, row: Unfinished, last: Stored) -> bool:
        """Whether the recorded message waits in its queue, as far as that is known without decoding the message.

        This is the case of each job of a backlog. To decode large parameters and outputs, only to ignore them, would be
        most of the reconciler's work.
        """
        token = last.subject.split(".")[2]
        if token in subjects.ENDS or not last.headers.get("Nats-Msg-Id", "").startswith(f"{row.job_id}.{row.step}."):
            return False
        if token == subjects.LATER:
            return True
        state = await self._state(token)
        if state is not None and state["delivered"]["stream_seq"] < last.sequence:
            self._suspects.pop(row.job_id, None)
            return True
        return False

    async def has_queue(self, stage: str) -> bool:
        """Whether the stage has a queue: a process declares the stage, or did. Raises BrokerUnavailable."""
        return await self._state(stage) is not None

    async def _state(self, consumer: str) -> dict[str, Any] | None:
        """Return the state of a consumer of HEIMDEX_JOBS, or None if it does not exist."""
        now = time.monotonic()
        at, state = self._states.get(consumer, (float("-inf"), None))
        if now - at > _STATE_SECONDS:
            try:
                state = await self._broker.api(f"CONSUMER.INFO.{subjects.JOBS}.{consumer}")
            except JetStreamError as error:
                if error.err_code != CONSUMER_NOT_FOUND:
                    raise
                state = None
            self._states[consumer] = (now, state)
        return state

    async def _settle(self, advice: Advice) -> None:
        stuck = await self._broker.next_message(advice.stream, ">", advice.stream_seq)
        if stuck is None or stuck.sequence != advice.stream_seq:
            return  # it has been settled in another way
        if advice.stream != subjects.JOBS:
            if not await self._put_at_the_end(advice.stream, stuck, {}):
                return
        elif not await self._settle_job(advice, stuck):
            return
        await self._broker.delete(advice.stream, stuck.sequence)
        self._log.warning(
            "delivery_given_up",
            message="NATS no longer delivers a message: it was recorded, or moved to the end of its queue",
            stream=advice.stream,
            consumer=advice.consumer,
            subject=stuck.subject,
            sequence=stuck.sequence,
        )

    async def _settle_job(self, advice: Advice, stuck: Stored) -> bool:
        """Record the message, or publish its work again. Returns whether the stuck message may be removed."""
        try:
            message = messages.decode_job(stuck.subject, stuck.data)
        except UnusableMessage:
            return False  # left for a person to examine
        if advice.consumer == subjects.STATUS_STORE:
            await self._record([(message, stuck.data)])
            if needs_callback(message) and not await self._callbacks.publish(message):
                raise BrokerUnavailable("a due callback could not be stored")
        last = await self._publisher.last(message.job_id)
        if last is None or last.sequence != stuck.sequence or not isinstance(message, Due):
            return True
        expected = {
            "Nats-Expected-Last-Subject-Sequence": str(stuck.sequence),
            "Nats-Expected-Last-Subject-Sequence-Subject": subjects.job_filter(message.job_id),
        }
        return await self._put_at_the_end(advice.stream, stuck, expected)

    async def _put_at_the_end(self, stream: str, stuck: Stored, expected: dict[str, str]) -> bool:
        """Publish a copy at the end of the queue. Returns whether it is stored, now or by another store."""
        headers = {name: value for name, value in stuck.headers.items() if not name.startswith("Nats-Expected-")}
        headers |= expected | {"Nats-Msg-Id": f"again.{stream}.{stuck.sequence}"}
        ack = await self._broker.publish(stuck.subject, stuck.data, headers)
        return ack.error is None
