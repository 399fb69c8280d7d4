"""Messages that NATS will not deliver any more, since somebody limited how often it does (`max_deliver`).

Our own consumers have no such limit: JetStream falls silent at it, and keeps the message. Where an operator sets one,
it is taken away again within seconds; what ran into it meanwhile is never delivered by that consumer again. NATS says
which message that is (an advisory), and a job that rests although workers wait for work is looked at, too.

What only has to be recorded is recorded here. What a stage has to do is put at the end of its queue, as the successor
of the message that is stuck, which is then removed: the broker accepts one successor, however many stores try.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.messages import AnyJobMessage, Due
from heimdex_contracts.runtime.jetstream.connection import Broker, Stored
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import ADVISORIES
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.subjects import NANOSECOND
from heimdex_status_store.callback_outbox import CallbackOutbox, needs_callback
from heimdex_status_store.queries import Unfinished

_ADVISED: Final = f"{ADVISORIES}.CONSUMER.MAX_DELIVERIES.*.*"
#: A job that rests for so many leases, while its stage's workers wait for work, is not held by any of them.
LEASES: Final = 3
#: Suspects that are remembered.
MOST: Final = 10_000
#: How long a consumer's state is believed; one look at many rows asks once.
_STATE_SECONDS: Final = 1.0


class Advice(msgspec.Struct, frozen=True):
    """What NATS says of a message that it gives up (io.nats.jetstream.advisory.v1.max_deliver)."""

    stream: str
    consumer: str
    stream_seq: int


class _Suspect(msgspec.Struct, frozen=True):
    sequence: int
    tick: int
    since: float


_advice: Final = msgspec.json.Decoder(Advice)


class Undeliverable:
    """Of one status store. record: writes messages of jobs to Postgres."""

    def __init__(
        self,
        broker: Broker,
        publisher: Publisher,
        record: Callable[[list[AnyJobMessage]], Awaitable[int]],
        owed: CallbackOutbox,
        log: Logger,
    ) -> None:
        self._broker = broker
        self._publisher = publisher
        self._record = record
        self._owed = owed
        self._log = log
        self._advised: set[Advice] = set()
        self._suspects: dict[str, _Suspect] = {}
        self._states: dict[str, tuple[float, dict[str, Any]]] = {}
        self._wake = asyncio.Event()

    async def start(self, wake: asyncio.Event) -> None:
        """Hear what NATS gives up from now on; `wake` is set when there is something to settle."""
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
        """Settle all that NATS has given up. Raises OUTAGE, BrokerUnavailable or JetStreamError; then call again."""
        for advice in list(self._advised):
            await self._settle(advice)
            self._advised.discard(advice)

    async def suspect(self, row: Unfinished, last: Stored) -> None:
        """Look at a job that rests: settle its newest message where nobody has it and nobody will get it.

        Needs to be called at least twice, some leases apart, with nothing having come of the job in between: a worker
        reports several times a second. Raises as `settle`.
        """
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
        if state["delivered"]["stream_seq"] < last.sequence or not state["num_waiting"]:
            self._suspects.pop(row.job_id, None)
            return
        tick = await self._broker.last_message(subjects.PROGRESS, subjects.progress_subject("*", row.job_id))
        now, before = time.monotonic(), self._suspects.get(row.job_id)
        seen = (last.sequence, tick.sequence if tick else 0)
        if before is None or (before.sequence, before.tick) != seen:
            if len(self._suspects) < MOST:
                self._suspects[row.job_id] = _Suspect(*seen, now)
            return
        if now - before.since > LEASES * state["config"]["ack_wait"] / NANOSECOND:
            del self._suspects[row.job_id]
            await self._settle(Advice(subjects.JOBS, consumer, last.sequence))

    async def _state(self, consumer: str) -> dict[str, Any]:
        now = time.monotonic()
        at, state = self._states.get(consumer, (float("-inf"), {}))
        if now - at > _STATE_SECONDS:
            state = await self._broker.api(f"CONSUMER.INFO.{subjects.JOBS}.{consumer}")
            self._states[consumer] = (now, state)
        return state

    async def _settle(self, advice: Advice) -> None:
        stuck = await self._broker.next_message(advice.stream, ">", advice.stream_seq)
        if stuck is None or stuck.sequence != advice.stream_seq:
            return  # it was settled otherwise
        if advice.stream != subjects.JOBS:
            if not await self._put_at_the_end(advice.stream, stuck, {}):
                return
        elif not await self._settle_job(advice, stuck):
            return
        await self._broker.delete(advice.stream, stuck.sequence)
        self._log.warning(
            "delivery_given_up",
            message="NATS will not deliver a message any more: it was recorded, or put at the end of its queue",
            stream=advice.stream,
            consumer=advice.consumer,
            subject=stuck.subject,
            sequence=stuck.sequence,
        )

    async def _settle_job(self, advice: Advice, stuck: Stored) -> bool:
        """Whether the message may be removed."""
        try:
            message = messages.decode_job(stuck.subject, stuck.data)
        except UnusableMessage:
            return False  # for a person to look at
        if advice.consumer == subjects.STATUS_STORE:
            await self._record([message])
            if needs_callback(message) and not await self._owed.publish(message):
                raise BrokerUnavailable("a callback could not be stored")
        last = await self._publisher.last(message.job_id)
        if last is None or last.sequence != stuck.sequence or not isinstance(message, Due):
            return True
        expected = {
            "Nats-Expected-Last-Subject-Sequence": str(stuck.sequence),
            "Nats-Expected-Last-Subject-Sequence-Subject": subjects.job_filter(message.job_id),
        }
        return await self._put_at_the_end(advice.stream, stuck, expected)

    async def _put_at_the_end(self, stream: str, stuck: Stored, expected: dict[str, str]) -> bool:
        """Whether a copy is there, or was not needed."""
        headers = {name: value for name, value in stuck.headers.items() if not name.startswith("Nats-Expected-")}
        headers |= expected | {"Nats-Msg-Id": f"again.{stream}.{stuck.sequence}"}
        ack = await self._broker.publish(stuck.subject, stuck.data, headers)
        return ack.error is None
