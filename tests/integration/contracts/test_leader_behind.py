"""A stream's leader that has not yet applied a delivered message: nothing is concluded from what it does not have.

In a replicated stream this lasts for the moment between two nodes' flushes. Here a broker stands in for such a leader:
the server is real, and what is behind the sequence that the leader knows is hidden from whoever asks.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from heimdex_contracts import subjects
from heimdex_contracts.errors import LeaderBehind, Superseded
from heimdex_contracts.messages import Due
from heimdex_contracts.runtime.jetstream.connection import NO_MESSAGE, ApiError, Broker, JetStreamError, PubAck, Stored
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_contracts.runtime.jetstream.publisher import BEHIND_SECONDS, Publisher
from tests.integration.conftest import NewBroker, count, make_topology, take
from tests.support.histories import due
from tests.support.recording_logger import RecordingLogger

WRONG_LAST_SEQUENCE = ApiError(code=400, err_code=10071, description="wrong last sequence: 0")
IN_FLIGHT = ApiError(code=400, err_code=10164, description="wrong last sequence")


class HeldBack(Broker):
    """A broker whose leader has applied the stream up to `known`, and catches up after `asked_before` more requests."""

    known = 0
    asked_before = 3

    @property
    def _behind(self) -> bool:
        return self.asked_before > 0

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], timeout: float = 2.0) -> PubAck:
        if self._behind and int(headers.get("Nats-Expected-Last-Subject-Sequence", "0")) > self.known:
            return PubAck(error=WRONG_LAST_SEQUENCE)
        return await super().publish(subject, payload, headers, timeout)

    async def last_message(self, *arguments: Any, **named: Any) -> Stored | None:
        message = await super().last_message(*arguments, **named)
        return None if self._behind and message is not None and message.sequence > self.known else message

    async def last_sequence(self, stream: str) -> int:
        sequence = await super().last_sequence(stream)
        if self._behind:
            self.asked_before -= 1
            return min(sequence, self.known)
        return sequence


def publisher_on(broker: Broker, journal: RecordingLogger, behind_seconds: float = BEHIND_SECONDS) -> Publisher:
    return Publisher(broker, cast("Any", journal), behind_seconds=behind_seconds)


def after(job: Due) -> Due:
    return due(job.job_id, step=1, stage="analyzing", reason="handed_over", started=True)


async def held_back(new_broker: NewBroker, known: int, asked_before: int = 3) -> HeldBack:
    broker = cast("HeldBack", await new_broker(HeldBack))
    broker.known, broker.asked_before = known, asked_before
    return broker


async def test_a_hand_over_waits_while_the_leader_does_not_have_its_predecessor(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    job = due()
    first = await publisher_on(ready, journal).publish(job, expected=0)
    broker = await held_back(new_broker, known=first - 1)
    second = await publisher_on(broker, journal).publish(after(job), expected=first)
    assert broker.asked_before == 0, "the leader was behind, and was asked until it was not"
    assert second > first
    assert await count(ready) == 2


async def test_a_leader_that_stays_behind_does_not_prove_that_a_job_was_superseded(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    job = due()
    first = await publisher_on(ready, journal).publish(job, expected=0)
    broker = await held_back(new_broker, known=first - 1, asked_before=1_000_000)
    with pytest.raises(LeaderBehind):
        await publisher_on(broker, journal, behind_seconds=0.2).publish(after(job), expected=first)
    assert await count(ready) == 1


async def test_a_message_that_is_gone_from_a_leader_that_has_applied_it_was_superseded(
    ready: Broker, holder: Holder, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    job = due()
    first = await publisher_on(ready, journal).publish(job, expected=0)
    for durable in ("extracting", "status-store"):
        (msg,) = await take(holder, durable)
        await ready.request(msg.reply, b"+ACK", timeout=5)
    broker = await held_back(new_broker, known=first - 1)
    with pytest.raises(Superseded):
        await publisher_on(broker, journal).publish(after(job), expected=first)
    assert broker.asked_before == 0


async def test_the_newest_message_is_read_only_from_a_leader_that_has_applied_the_delivery(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    job = due()
    first = await publisher_on(ready, journal).publish(job, expected=0)
    broker = await held_back(new_broker, known=first - 1, asked_before=1)
    with pytest.raises(LeaderBehind):
        await publisher_on(broker, journal).newest(job.job_id, known=first)
    newest = await publisher_on(broker, journal).newest(job.job_id, known=first)
    assert newest is not None
    assert newest.sequence == first


class HeldBackTopology(HeldBack):
    """Also when single messages are read."""

    async def api(self, call: str, body: dict[str, Any] | None = None, timeout: float = 3.0) -> dict[str, Any]:
        if call.startswith("STREAM.MSG.GET.") and self._behind and body and body.get("seq", 0) > self.known:
            raise JetStreamError(ApiError(code=404, err_code=NO_MESSAGE, description="no message found"))
        return await super().api(call, body, timeout)


@pytest.mark.parametrize(
    "is_gone",
    [
        pytest.param(False, id="it catches up"),
        pytest.param(True, id="the message is gone", marks=pytest.mark.allows("lost")),
    ],
)
async def test_a_held_delivery_is_lost_only_if_the_leader_has_reached_its_sequence(
    ready: Broker, holder: Holder, new_broker: NewBroker, journal: RecordingLogger, is_gone: bool
) -> None:
    first = await publisher_on(ready, journal).publish(due(), expected=0)
    (held,) = await take(holder, "extracting")
    await publisher_on(ready, journal).publish(due(), expected=0)
    if is_gone:
        await ready.delete(subjects.JOBS, first)
    broker = cast("HeldBackTopology", await new_broker(HeldBackTopology))
    broker.known, broker.asked_before, broker.replicated = first - 1, 3, True
    topology = make_topology(broker, journal)
    topology.held = {held}
    await topology.ensure()
    assert broker.asked_before == 0, "the leader was behind, and was asked until it was not"
    assert topology.is_current(held.reply) is not is_gone
    assert bool(journal.of("deliveries_lost")) is is_gone


class BeingStored(Broker):
    """The first publish is refused because a message on its subject is being replicated, which is never stored."""

    refuse = 1

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], timeout: float = 2.0) -> PubAck:
        if self.refuse:
            self.refuse -= 1
            return PubAck(error=IN_FLIGHT)
        return await super().publish(subject, payload, headers, timeout)


@pytest.mark.parametrize("make", [due, lambda: due(step=3, run=2, reason="retried")], ids=["new job", "next run"])
async def test_a_refusal_because_of_a_message_being_replicated_does_not_prove_a_stored_job(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger, make: Callable[[], Due]
) -> None:
    """The message being replicated may never be stored (its leader dies): a 202 for it would be a false promise."""
    job = make()
    publishing_late = publisher_on(await new_broker(BeingStored), journal)
    sequence = await publishing_late.publish(job, expected=0, deadline=asyncio.get_running_loop().time() + 20)
    stored = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
    assert stored is not None
    assert stored.sequence == sequence
