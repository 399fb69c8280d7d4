"""The check of the stages' queues against a real server."""

import asyncio
from typing import Any, cast

from heimdex_contracts import pipelines, streams, subjects
from heimdex_contracts.pipelines import Pipeline, Stage
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_status_store.stage_watch import LOOKS, StageWatch
from tests.integration.conftest import take
from tests.support.histories import new_id
from tests.support.recording_logger import RecordingLogger

#: One page of a list of consumers in nats-server has 256.
MANY = 300


def watch(broker: Broker, journal: RecordingLogger, *stages: Stage) -> StageWatch:
    return StageWatch(broker, pipelines.collect([Pipeline("some", stages)]), cast("Any", journal))


def stage(name: str, *formerly: str) -> Stage:
    return Stage(name, 1, "some.module:run", formerly=formerly)


async def look(watched: StageWatch, times: int = LOOKS) -> list[str]:
    for _ in range(times):
        await watched.look()
    return watched.without_workers()


async def test_every_queue_is_checked_however_many_there_are(ready: Broker, journal: RecordingLogger) -> None:
    ready_stages = [f"s{number}" for number in range(MANY)]
    requests = []
    for name in ready_stages:
        config = streams.Consumer(name, subjects.stage_filter(name), 60).config()
        body = {"stream_name": subjects.JOBS, "config": config}
        requests.append(ready.api(f"CONSUMER.DURABLE.CREATE.{subjects.JOBS}.{name}", body, timeout=30))
    await asyncio.gather(*requests)
    for name in ready_stages:
        await ready.publish(subjects.job_subject(name, new_id()), b"{}", {}, timeout=30)
    watched = watch(ready, journal, *map(stage, ready_stages))
    assert await look(watched) == sorted(ready_stages)
    assert watched.undeclared() == []


async def test_a_stage_is_reported_after_some_checks_and_not_while_deliveries_are_taken(
    ready: Broker, holder: Holder, journal: RecordingLogger
) -> None:
    watched = watch(ready, journal, stage("extracting"))
    for _ in range(LOOKS + 1):
        await ready.publish(subjects.job_subject("extracting", new_id()), b"{}", {})
    assert await look(watched, LOOKS - 1) == []
    for _ in range(LOOKS):
        (taken,) = await take(holder, "extracting")  # by a worker of another name, with no standing request
        taken.ack()
        await ready.flush(5)
        assert await look(watched, 1) == []
    assert await look(watched) == ["extracting"]


async def test_the_worker_of_a_renamed_stage_counts_for_the_queue_of_its_former_name(
    ready: Broker, holder: Holder, journal: RecordingLogger
) -> None:
    """The worker holds the only job of the former queue, and has no request there."""

    async def answer(msg: Any) -> None:
        await msg.respond(b"{}")

    await ready.publish(subjects.job_subject("extracting", new_id()), b"{}", {})
    await take(holder, "extracting")
    subscription = await ready.nc.subscribe("$SRV.PING.heimdex-probing", cb=answer)
    renamed = watch(ready, journal, stage("probing", "extracting"))
    assert await look(renamed) == []
    await subscription.unsubscribe()
    assert await look(renamed) == ["extracting"]
    # To a store that knows neither name, it is a stage that nobody declares.
    other = watch(ready, journal, stage("analyzing"))
    assert await look(other) == []
    assert other.undeclared() == ["extracting"]
