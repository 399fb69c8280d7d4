"""No response shows an older state than an earlier one, whatever happens in between; checked against a model."""

import asyncio
import itertools
import time
from random import Random
from typing import Any, cast

import msgspec
import pytest

from heimdex_contracts import subjects
from heimdex_contracts.lifecycle import Snapshot, snapshot
from heimdex_contracts.messages import DEFAULT_TENANT, AnyMessage
from heimdex_gateway.jobs.status import StateUnavailable, StatusReader
from tests.support.histories import Writer, due, random_run
from tests.unit.gateway.world import BrokenBroker, World

ORDER = {"pending": 0, "processing": 1, "completed": 2, "failed": 2, "canceled": 2}


def reads(world: World, broker: Any = None) -> StatusReader:
    return StatusReader(cast("Any", broker or world), cast("Any", world))


def settled(events: list[AnyMessage], recorded: int) -> World:
    """A world in which these events are published, the first `recorded` are recorded, and nothing changes any more."""
    world = World(events, Random(0), outages=False)
    world.random.choice = lambda options: options[0]  # type: ignore[method-assign]  # nothing happens meanwhile
    for number in range(len(events)):
        world.publish_next()
        if number < recorded:
            for stream in world.streams.values():
                stream.deliver()
            world.record()
            world.acknowledge()
    return world


async def play(world: World, gateway_count: int) -> list[tuple[int, Snapshot]]:
    """Run the world, and return the gateways' responses in order. A GET may also fail."""
    loop = asyncio.get_running_loop()
    loop.time = lambda: time.monotonic() + world.seconds  # type: ignore[method-assign]
    gateways = [reads(world) for _ in range(gateway_count)]
    world.publish_next()
    world.streams[subjects.JOBS].apply()  # its caller was answered
    answers: list[tuple[int, Snapshot]] = []
    for number in range(80):
        for _ in range(world.random.choice([0, 1, 4])):
            world.step()
        asked = world.random.randrange(gateway_count)
        try:
            job = await gateways[asked].job(world.job_id, DEFAULT_TENANT)
        except StateUnavailable:
            continue
        assert job is not None, f"an accepted job was not found, at answer {number}"
        answers.append((asked, job))
        if world.over and job.ended:
            break
    return answers


def check(answers: list[tuple[int, Snapshot]]) -> None:
    for (asked, earlier), (name, later) in itertools.pairwise(answers):
        difference = f"gateway {asked} returned {earlier}, then gateway {name} returned {later}"
        assert ORDER[later.status] >= ORDER[earlier.status], f"the status went back: {difference}"
        assert later.step >= earlier.step, f"the step went back: {difference}"
        assert later.progress >= earlier.progress, f"the progress went back: {difference}"
        assert later.updated_at >= earlier.updated_at, f"updated_at went back: {difference}"
        if earlier.ended:
            assert (later.status, later.progress) == (earlier.status, earlier.progress), difference


@pytest.mark.parametrize("replicated", [False, True], ids=["one node", "a leader that lags"])
@pytest.mark.parametrize("hundred", range(0, 1000, 100))
async def test_no_response_is_older_than_an_earlier_one_through_outages_of_postgres_and_the_store(
    hundred: int, replicated: bool
) -> None:
    for seed in range(hundred, hundred + 100):
        random = Random(seed)
        check(await play(World(random_run(random), random, replicated=replicated), gateway_count=1))


@pytest.mark.parametrize("replicated", [False, True], ids=["one node", "a leader that lags"])
@pytest.mark.parametrize("hundred", range(0, 1000, 100))
async def test_no_response_is_older_than_another_gateways_while_the_store_keeps_up(
    hundred: int, replicated: bool
) -> None:
    for seed in range(hundred, hundred + 100):
        random = Random(seed)
        world = World(random_run(random), random, outages=False, time_passes=False, replicated=replicated)
        check(await play(world, gateway_count=2))


async def test_a_job_that_postgres_does_not_have_yet_is_read_from_the_stream() -> None:
    world = settled(Writer().events, recorded=0)
    job = await reads(world).job(world.job_id, DEFAULT_TENANT)
    assert job is not None
    assert job.status == "pending"


async def test_a_job_is_read_from_the_stream_while_postgres_is_down() -> None:
    world = settled(Writer().events, recorded=0)
    world.postgres_up = False
    job = await reads(world).job(world.job_id, DEFAULT_TENANT)
    assert job is not None
    assert job.status == "pending"


async def test_a_finished_job_is_read_from_postgres_while_nats_is_down() -> None:
    writer = Writer()
    writer.fail()
    world = settled(writer.events, recorded=2)
    job = await reads(world, BrokenBroker()).job(world.job_id, DEFAULT_TENANT)
    assert job == world.row


async def test_an_unfinished_job_is_an_error_while_nats_is_down() -> None:
    world = settled(Writer().events, recorded=1)
    with pytest.raises(StateUnavailable):
        await reads(world, BrokenBroker()).job(world.job_id, DEFAULT_TENANT)


@pytest.mark.parametrize("recorded", [0, 1, 2])
@pytest.mark.parametrize("postgres_up", [True, False])
@pytest.mark.parametrize("nats_up", [True, False])
@pytest.mark.parametrize("completes", [True, False])
async def test_another_tenants_job_is_like_one_that_does_not_exist(
    recorded: int, postgres_up: bool, nats_up: bool, completes: bool
) -> None:
    writer = Writer()
    writer.tick(0.5)
    if completes:
        while writer.finish_stage():
            pass
    events = [msgspec.structs.replace(event, tenant="acme") for event in writer.events]
    world = settled(events, len(events) if completes and recorded == 2 else recorded)
    empty = settled(Writer().events, recorded=0)
    empty.streams[subjects.JOBS].kept.clear()
    errors = []
    for one in (world, empty):
        one.postgres_up = postgres_up
        try:
            answer: Any = await reads(one, None if nats_up else BrokenBroker()).job(one.job_id, DEFAULT_TENANT)
        except StateUnavailable as error:
            answer = str(error)
        errors.append(answer)
    assert errors[0] == errors[1]
    assert errors[0] is None or isinstance(errors[0], str)
    if postgres_up and nats_up:
        own = await reads(world).job(world.job_id, "acme")
        assert own is not None
        assert own.tenant == "acme"


async def test_an_unknown_job_is_none_when_both_answer() -> None:
    world = settled(Writer().events, recorded=0)
    world.streams[subjects.JOBS].kept.clear()
    assert await reads(world).job(world.job_id, DEFAULT_TENANT) is None


async def test_a_job_without_a_row_is_an_error_while_nats_is_down() -> None:
    world = settled(Writer().events, recorded=0)
    with pytest.raises(StateUnavailable):
        await reads(world, BrokenBroker()).job(world.job_id, DEFAULT_TENANT)


async def test_every_job_is_an_error_while_both_are_down() -> None:
    world = settled(Writer().events, recorded=1)
    world.postgres_up = False
    with pytest.raises(StateUnavailable):
        await reads(world, BrokenBroker()).job(world.job_id, DEFAULT_TENANT)


async def test_a_finished_job_that_only_postgres_has_is_an_error_while_it_is_down() -> None:
    writer = Writer()
    writer.fail()
    world = settled(writer.events, recorded=2)
    assert world.streams[subjects.JOBS].kept == {}
    world.postgres_up = False
    with pytest.raises(StateUnavailable):
        await reads(world).job(world.job_id, DEFAULT_TENANT)


async def test_a_tick_is_read_from_postgres_only_because_the_stream_may_lose_it() -> None:
    writer = Writer()
    writer.tick(0.6)
    tick = snapshot(writer.events[-1])
    world = settled(writer.events, recorded=1)
    job = await reads(world).job(world.job_id, DEFAULT_TENANT)
    assert job is not None
    assert (job.status, job.progress) == ("pending", 0)
    world.streams[subjects.PROGRESS].deliver()
    world.record()
    job = await reads(world).job(world.job_id, DEFAULT_TENANT)
    assert job is not None
    assert (job.status, job.progress) == ("processing", tick.progress)
    world.postgres_up = False
    with pytest.raises(StateUnavailable):
        await reads(world).job(world.job_id, DEFAULT_TENANT)


async def test_a_message_of_another_job_in_the_stream_is_ignored() -> None:
    class Stranger(BrokenBroker):
        async def last_message(self, stream: str, *_: Any, **__: Any) -> Any:
            from heimdex_contracts.runtime.jetstream.connection import Stored

            return Stored("heimdex.jobs.extracting.x", 7, b"rubbish", {})

    world = settled(Writer().events, recorded=0)
    assert await reads(world, Stranger()).job(world.job_id, DEFAULT_TENANT) is None


async def test_a_terminal_state_from_a_leader_that_lacks_the_next_run_is_not_returned() -> None:
    writer = Writer()
    writer.fail()
    failed = writer.events[-1]
    again = due(writer.due.job_id, step=failed.step + 1, run=2, reason="retried", at=failed.at)
    world = settled([*writer.events, again], recorded=0)
    world.replicated = True
    # The store's consumer is ahead of the stream's leader: Postgres had the next run, and GET returned it.
    for _ in range(3):
        world.streams[subjects.JOBS].deliver()
    world.record()
    world.acknowledge()
    world.streams[subjects.JOBS].applied = 2
    world.streams[subjects.JOBS].kept.setdefault(2, failed)
    assert world.row is not None
    assert world.row.status == "pending"
    world.postgres_up = False
    with pytest.raises(StateUnavailable):
        await reads(world).job(world.job_id, DEFAULT_TENANT)
