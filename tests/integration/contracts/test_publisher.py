"""One successor: of all messages that would follow a job's message, the broker accepts exactly one."""

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, Superseded
from heimdex_contracts.messages import Canceled, Due, Failed
from heimdex_contracts.runtime.jetstream.connection import Broker, PubAck
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from tests.integration.conftest import NewBroker, count, take
from tests.support.histories import START, due
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer
from tests.support.waiting import eventually


def publisher(broker: Broker, journal: RecordingLogger) -> Publisher:
    return Publisher(broker, cast("Any", journal))


def after(job: Due, **fields: Any) -> Due:
    common = {"step": job.step + 1, "stage": "analyzing", "reason": "handed_over", "started": True}
    return due(job.job_id, **{**common, **fields})


def failed(job: Due) -> Failed:
    return Failed(
        job_id=job.job_id,
        type=job.type,
        step=job.step + 1,
        created_at=START,
        at=START,
        stage="extracting",
        attempt=4,
        error="oh",
    )


def canceled(job: Due) -> Canceled:
    return Canceled(job_id=job.job_id, type=job.type, step=job.step + 1, created_at=START, at=START)


@pytest.fixture
def publishing(ready: Broker, journal: RecordingLogger) -> Publisher:
    return publisher(ready, journal)


@pytest.mark.containers
async def test_exactly_one_of_two_competing_successors_is_accepted(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    others = [ready, await new_broker(), await new_broker()]
    for _ in range(20):
        job = due()
        first = await publisher(ready, journal).publish(job, expected=0)
        twins = [after(job), failed(job), canceled(job), after(job, reason="handed_back", stage="extracting")]
        tries = [
            publisher(others[number % 3], journal).publish(twin, expected=first) for number, twin in enumerate(twins)
        ]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(outcome, int) for outcome in outcomes) == 1, outcomes
        assert sum(isinstance(outcome, Superseded) for outcome in outcomes) == 3, outcomes
        assert await count(ready) == 2
        await ready.api("STREAM.PURGE.HEIMDEX_JOBS")


async def test_a_new_job_is_refused_if_its_id_is_in_use(publishing: Publisher) -> None:
    job = due()
    await publishing.publish(job, expected=0)
    with pytest.raises(Superseded):
        await publishing.publish(due(job.job_id, stage="analyzing"), expected=0)


@pytest.mark.containers
async def test_a_late_successor_is_refused_after_all_messages_were_acknowledged_and_removed(
    ready: Broker, holder: Holder, publishing: Publisher
) -> None:
    job = due()
    first = await publishing.publish(job, expected=0)
    end = await publishing.publish(failed(job), expected=first)
    for durable, number in (("extracting", 1), ("status-store", 2)):
        for msg in await take(holder, durable, number):
            await ready.request(msg.reply, b"+ACK", timeout=5)

    async def gone() -> bool:
        return await count(ready) == 0

    await eventually(gone)
    for expected in (first, end):
        with pytest.raises(Superseded):
            await publishing.publish(after(job), expected=expected)
    assert await count(ready) == 0


async def test_the_message_has_its_id_and_its_trace(ready: Broker, publishing: Publisher) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    job = due(trace=trace)
    await publishing.publish(job, expected=0)
    stored = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
    assert stored is not None
    assert stored.headers["traceparent"] == trace
    assert stored.headers["Nats-Msg-Id"] == f"{job.job_id}.0.extracting"
    assert messages.decode_job(stored.subject, stored.data) == job


class LosesAnswers(Broker):
    """A broker that publishes, and drops the server's first acknowledgements."""

    lose = 2

    async def publish(self, *arguments: Any, **named: Any) -> PubAck:
        ack = await super().publish(*arguments, **named)
        if self.lose:
            self.lose -= 1
            raise BrokerUnavailable("the answer was lost")
        return ack


class LosesRequests(Broker):
    """A broker whose first publishes never reach the server."""

    lose = 2

    async def publish(self, *arguments: Any, **named: Any) -> PubAck:
        if self.lose:
            self.lose -= 1
            raise BrokerUnavailable("the request was lost")
        return await super().publish(*arguments, **named)


@pytest.mark.parametrize("kind", [LosesAnswers, LosesRequests])
@pytest.mark.parametrize("follows", [False, True], ids=["new job", "hand-over"])
async def test_a_publish_of_unknown_outcome_is_repeated_and_stored_once(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger, kind: type[Broker], follows: bool
) -> None:
    losing = publisher(await new_broker(kind), journal)
    job: Due = due()
    expected = 0
    if follows:
        expected = await publisher(ready, journal).publish(job, expected=0)
        job = after(job)
    sequence = await losing.publish(job, expected=expected)
    stored = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
    assert stored is not None
    assert stored.sequence == sequence
    assert await count(ready) == 1 + follows


async def test_a_competing_message_that_was_stored_meanwhile_is_not_mistaken_for_the_own_one(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    job = due()
    first = await publisher(ready, journal).publish(job, expected=0)
    await publisher(ready, journal).publish(after(job, progress=33), expected=first)
    # The twin hands over the same step to the same stage, so its message id is the same; its content is not.
    with pytest.raises(Superseded):
        await publisher(await new_broker(LosesRequests), journal).publish(after(job, progress=34), expected=first)


@pytest.mark.allows("stray")
@pytest.mark.parametrize("first", [False, True], ids=["hand-over", "new job"])
async def test_an_unusable_message_on_the_jobs_subject_is_removed_and_the_job_continues(
    ready: Broker, publishing: Publisher, journal: RecordingLogger, first: bool
) -> None:
    job = due()
    expected = 0 if first else await publishing.publish(job, expected=0)
    await ready.publish(subjects.job_subject("painting", job.job_id), b"rubbish", {})
    following = job if first else after(job)
    sequence = await publishing.publish(following, expected=expected)
    last = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
    assert last is not None
    assert (last.sequence, last.data) == (sequence, messages.encode(following))
    assert journal.of("stray_removed")


@pytest.mark.allows("stray")
async def test_a_copy_of_an_older_message_on_the_jobs_subject_is_removed_and_the_job_continues(
    ready: Broker, publishing: Publisher
) -> None:
    job = due()
    first = await publishing.publish(job, expected=0)
    await ready.publish(subjects.job_subject("extracting", job.job_id), messages.encode(job), {})
    sequence = await publishing.publish(after(job), expected=first)
    last = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
    assert last is not None
    assert last.sequence == sequence


async def test_a_cancel_that_arrives_as_its_jobs_schedule_fires_does_not_remove_the_started_job(
    ready: Broker, publishing: Publisher
) -> None:
    job = due(not_before=messages.now() + timedelta(seconds=0.2))
    scheduled = await publishing.publish(job, expected=0)

    async def started() -> bool:
        last = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
        return last is not None and last.sequence > scheduled

    await eventually(started)
    with pytest.raises(Superseded):
        await publishing.publish(canceled(job), expected=scheduled)
    assert await started()
    last = await ready.last_message(subjects.JOBS, subjects.job_filter(job.job_id))
    assert last is not None
    await publishing.publish(canceled(job), expected=last.sequence)


async def test_a_publish_with_a_deadline_gives_up_during_an_outage(
    publishing: Publisher, ready: Broker, nats: NatsServer
) -> None:
    nats.stop()
    await eventually(lambda: not ready.connected)
    with pytest.raises(BrokerUnavailable):
        await publishing.publish(due(), expected=0, deadline=asyncio.get_running_loop().time() + 0.3)


async def test_a_publish_without_a_deadline_waits_until_the_outage_is_over(
    publishing: Publisher, ready: Broker, nats: NatsServer
) -> None:
    nats.stop()
    await eventually(lambda: not ready.connected)
    publish = asyncio.create_task(publishing.publish(due(), expected=0))
    nats.start()
    assert await asyncio.wait_for(publish, 40) > 0
    assert await count(ready) == 1


async def test_last_is_none_for_an_unknown_job(publishing: Publisher) -> None:
    assert await publishing.last(due().job_id) is None
