"""The newest progress tick of a hand-over, as each service reads it."""

from typing import Any

import pytest

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.messages import Due, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.latest_progress import latest_progress
from tests.support.histories import START, due
from tests.support.servers import NatsServer
from tests.support.waiting import eventually


async def publish(broker: Broker, handed_over: Due, percent: int, **fields: Any) -> Progress:
    """Publish a tick of this hand-over; `fields` override its fields."""
    own = {"stage": handed_over.stage, "step": handed_over.step, "run": handed_over.run, "job_id": handed_over.job_id}
    rest = {"type": "mock_process", "attempt": 1, "created_at": START, "at": START}
    tick = Progress(**{**own, **rest, "progress": percent, **fields})
    ack = await broker.publish(subjects.progress_subject(tick.stage, tick.job_id), messages.encode(tick), {})
    assert ack.error is None
    return tick


async def test_only_a_tick_of_this_hand_over_counts(ready: Broker) -> None:
    job = due(step=4, stage="analyzing")
    assert await latest_progress(ready, job) is None
    await publish(ready, due(step=4, stage="analyzing"), 50)
    await publish(ready, job, 40, step=3)
    assert await latest_progress(ready, job) is None
    newest = await publish(ready, job, 41)
    assert await latest_progress(ready, job) == newest


async def test_a_late_tick_of_an_earlier_stage_hides_nothing(ready: Broker) -> None:
    job = due(step=1, stage="analyzing")
    newest = await publish(ready, job, 50)
    await publish(ready, job, 30, stage="extracting", step=0)
    assert await latest_progress(ready, job) == newest


async def test_an_unusable_tick_does_not_count(ready: Broker) -> None:
    job = due()
    await ready.publish(subjects.progress_subject(job.stage, job.job_id), b"rubbish", {})
    assert await latest_progress(ready, job) is None


async def test_an_outage_is_not_taken_for_the_absence_of_a_tick(ready: Broker, nats: NatsServer) -> None:
    nats.kill()
    await eventually(lambda: not ready.connected)
    with pytest.raises(BrokerUnavailable):
        await latest_progress(ready, due())
