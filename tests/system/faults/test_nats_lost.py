"""Fault 7, NATS: killed, frozen, and restarted with an empty disk."""

import asyncio
import time
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.ends import wait_until_returned
from tests.support.following import Follower
from tests.support.load import Load, followed_load
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.pipelines.scripted import STAGES as SCRIPTED
from tests.support.pipelines.scripted import Script
from tests.support.rows import fetch, freeze, thaw
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer


async def restart(nats: Any, *, wipe: bool = False) -> None:
    """Restart NATS as after a crash: SIGKILL, then a start on the same address."""
    await asyncio.to_thread(nats.kill)
    if wipe:
        nats.wipe()
    await asyncio.to_thread(nats.start)


async def emptied(nats: Any) -> None:
    async with Observer(nats.url) as seen:
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")


@pytest.mark.allows("nats_killed")
async def test_nothing_accepted_is_lost_when_nats_is_killed_and_restarted_under_load(
    system: System, nats: Any, database_url: str
) -> None:
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.05"
    system.start_all()
    await system.ready()
    async with (
        Follower([system.url], newest=10) as follower,
        Load([system.url], per_second=20, on_accepted=follower.add) as load,
    ):
        for _ in range(2):
            await load.more(20)
            await asyncio.to_thread(nats.kill)
            refused = load.refused.total()
            await eventually(lambda refused=refused: load.refused.total() > refused, what="POST refuses")
            await asyncio.to_thread(nats.start)
            await load.more(1)
        await load.stop()
        ends = await load.all_end(database_url)
        await emptied(nats)
        assert set(ends.values()) == {"completed"}
    assert set(load.refused) <= {"500"}, "an error says what is wrong, and is no 202"
    follower.check()


async def test_a_job_whose_acknowledgement_was_lost_is_accepted_although_it_has_moved_on(
    system: System, api: Api, nats: Any, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES, without=("gateway", "resting"))
    system.start("gateway", launcher=LAUNCHERS / "gateway_loses_an_answer.py")
    await system.ready()
    async with Observer(nats.url, "heimdex-stored.>") as stored:
        job_id = await api.submit("quick")
        # Its second stage has no worker yet, so that its message is still in the stream when it is read.
        assert stored.subjects("heimdex-stored.jobs", job_id) == ["working", "resting"]
        system.start("resting")
        await api.wait_until(job_id, "completed")
        assert stored.subjects("heimdex-stored.jobs", job_id) == ["working", "resting", "completed"]


@pytest.mark.allows("nats_silent")
async def test_a_half_open_connection_is_detected_and_everything_continues(
    system: System, api: Api, nats: Any, database_url: str
) -> None:
    await go_through_a_silence(system, api, nats, database_url, seconds=5)


async def go_through_a_silence(system: System, api: Api, nats: Any, database_url: str, seconds: float) -> None:
    """Freeze NATS under load. The kernel still accepts data for it: only the missing replies show the fault."""
    async with followed_load(system, newest=5) as (load, follower):
        freeze(nats.child.pid)
        try:
            began = time.monotonic()
            refused = load.refused.total()
            await eventually(lambda: load.refused.total() > refused, what="POST does not wait for ever")
            assert (await api.http.get("/healthz")).status_code == 200
            await eventually(lambda: time.monotonic() - began > seconds, what="the silence passes")
        finally:
            thaw(nats.child.pid)
        began = time.monotonic()
        await load.more(1)
        print(f"\naccepting again {time.monotonic() - began:.1f} s after a silence of {seconds:g} s")
        await load.more(10)
        await load.stop()
        # A job whose POST was answered with 500 may still have been stored, and then runs.
        assert set((await load.all_end(database_url)).values()) == {"completed"}
    await emptied(nats)
    follower.check()
    assert load.slowest < 15


@pytest.mark.allows("nats_killed", "restored")
async def test_jobs_continue_from_their_stage_when_nats_comes_back_with_an_empty_disk(
    system: System, api: Api, nats: Any, script: Script, database_url: str
) -> None:
    system.env |= script.env
    script.write("grinding", "gate")
    system.start_all(stages=SCRIPTED)
    await system.ready()
    async with Follower([system.url]) as follower:
        jobs = [await api.submit("scripted") for _ in range(5)]
        follower.add(*jobs)
        await eventually(lambda: len(script.runs("grinding")) == 5, what="all are in the second stage")
        await wait_until_returned(follower, jobs, stage="grinding")
        await api.wait_until_listed(jobs, stage="grinding")
        system["grinding"].kill()
        await restart(nats, wipe=True)
        script.open_gate()
        system.start("grinding")
        await wait_until_returned(follower, jobs, status="completed")
        await emptied(nats)
    follower.check()
    assert len(script.runs("preparing")) == 5, "no stage that was done is done again"
    assert {attempt for _, _, attempt, _ in script.runs("grinding")} == {1}, "being lost with the stream is no attempt"


@pytest.mark.allows("nats_killed", "restored", "stray")
async def test_old_deliveries_settle_nothing_in_the_stream_that_replaced_the_lost_one(
    system: System, api: Api, nats: Any, duties: Behaviours, database_url: str
) -> None:
    # Sequences start at 1 again, and an acknowledgement names a message by nothing else.
    system.start_all(stages=STAGES)
    await system.ready()
    held = [await api.submit("gated") for _ in range(5)]
    await eventually(lambda: len(duties.runs()) == 5)
    await eventually(lambda: _count(database_url, 5), what="Postgres knows all")
    await restart(nats, wipe=True)
    await system["gateway"].wait_log("nats_reconnected")
    async with Observer(nats.url) as seen:
        await eventually(lambda: _accepts(api), what="accepting again")
        new = [await api.submit("gated") for _ in range(10)]

        async def delivered() -> bool:
            consumer = await seen.api(f"CONSUMER.INFO.{JOBS}.working")
            return bool(consumer["num_ack_pending"] >= 15 and not consumer["num_pending"])

        await eventually(delivered, what="the old jobs are restored, and all are delivered")
        # The five attempts that began before the loss end first, and their results are dropped.
        duties.open_gate()
        for job_id in [*held, *new]:
            await api.wait_until(job_id, "completed", timeout=30)
        await eventually(seen.empty)


async def _count(database_url: str, expected: int) -> bool:
    return len(await fetch(database_url, "SELECT FROM jobs")) == expected


async def _accepts(api: Api) -> bool:
    return (await api.http.post("/jobs", json={"type": "quick"})).status_code == 202
