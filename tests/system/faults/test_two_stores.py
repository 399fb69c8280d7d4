"""Two status stores and two gateways: no response shows an older state than an earlier one of either gateway."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.ends import published, wait_until_returned
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.receiver import SECRET, Receiver
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, Service, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel, retry


@pytest.fixture
def system(new_system: NewSystem, nats: NatsServer, own_postgres: Any) -> System:
    return new_system(nats.url, own_postgres.url)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


async def test_a_leftover_message_of_a_frozen_store_is_not_returned_as_the_state_while_postgres_is_down(
    system: System, nats: NatsServer, own_postgres: Any, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES, without=("status-store",))
    frozen = system.start("status-store", {"TEST_TAKES": "5"}, LAUNCHERS / "store_that_takes_few.py")
    await system.ready()
    async with Api(system.url) as api, Observer(nats.url) as seen, Follower([system.url]) as follower:
        await api.wait_until(await api.submit("quick"), "completed")
        # It has requested five messages, gets them, and acknowledges none; the other store gets the later ones.
        frozen.freeze()
        jobs = [await api.submit("gated") for _ in range(5)]
        await eventually(lambda: len(duties.runs()) == 6)
        store = await seen.api(f"CONSUMER.INFO.{JOBS}.status-store")
        assert store["num_ack_pending"] >= 2
        await system.start("status-store").wait_log("ready")
        duties.open_gate()
        await published(seen, jobs)
        await eventually(lambda: _ended(api, jobs), what="the other store has recorded the ends")
        follower.add(*jobs)
        await eventually(lambda: all(follower.seen(job_id) for job_id in jobs))
        await asyncio.to_thread(own_postgres.stop)
        try:
            asked = follower.asked
            await eventually(lambda: follower.asked > asked + 10)
        finally:
            await asyncio.to_thread(own_postgres.start)
        frozen.thaw()
        await eventually(seen.empty, 60)
    follower.check()


async def _left_over(system: System, seen: Observer, api: Api, job_type: str, **fields: Any) -> tuple[str, Service]:
    """Return a job whose first message was delivered to a frozen status store, beside a running one."""
    system.start_all(stages=STAGES, without=("status-store",))
    frozen = system.start("status-store", {"TEST_TAKES": "1"}, LAUNCHERS / "store_that_takes_few.py")
    await system.ready()
    await api.wait_until(await api.submit("quick"), "completed")
    await eventually(seen.empty)
    frozen.freeze()
    job_id = await api.submit(job_type, **fields)

    async def taken() -> bool:
        store = await seen.api(f"CONSUMER.INFO.{JOBS}.status-store")
        return int(store["num_ack_pending"]) == 1

    await eventually(taken)
    await system.start("status-store").wait_log("ready")
    return job_id, frozen


async def test_a_cancel_of_a_just_finished_job_is_refused_although_a_leftover_message_seems_newest(
    system: System, nats: NatsServer, duties: Behaviours, scratch: Path, receiver: Receiver
) -> None:
    go_on = scratch / "go_on"
    system.env |= {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.1"}
    async with Api(system.url) as api, Observer(nats.url) as seen:
        job_id, frozen = await _left_over(system, seen, api, "gated", callback_url=receiver.url)
        await system["gateway"].terminate()
        system.start("gateway", {"TEST_GO_ON": str(go_on)}, LAUNCHERS / "gateway_that_waits_before_a_change.py")
        await system.ready()
        canceling = asyncio.create_task(cancel(api, job_id, status=409))
        await eventually(go_on.with_suffix(".waiting").exists)
        duties.open_gate()
        await eventually(lambda: _ended(api, [job_id]))

        async def only_the_left_over_is_left() -> bool:
            answer = await seen.api(f"STREAM.MSG.GET.{JOBS}", {"last_by_subj": f"heimdex.jobs.*.{job_id}"})
            return bool(answer["message"]["subject"] == f"heimdex.jobs.working.{job_id}")

        await eventually(only_the_left_over_is_left)
        go_on.touch()
        assert "completed" in str((await canceling)["detail"])
        assert (await api.get(job_id))["status"] == "completed"
        frozen.thaw()
        for stream in (JOBS, "HEIMDEX_CALLBACKS"):
            await eventually(lambda stream=stream: seen.empty(stream))  # type: ignore[misc]
        assert (await api.get(job_id))["status"] == "completed"
        assert [call.job["status"] for call in receiver.calls] == ["completed"]


async def test_a_failed_job_is_retried_although_a_leftover_message_seems_newest(
    system: System, nats: NatsServer, duties: Behaviours
) -> None:
    async with Api(system.url) as api, Observer(nats.url) as seen:
        job_id, frozen = await _left_over(system, seen, api, "raiser")
        await eventually(lambda: _ended(api, [job_id], "failed"))
        before = len(duties.runs(job_id))
        await retry(api, job_id)
        await eventually(lambda: len(duties.runs(job_id)) == 2 * before)
        await eventually(lambda: _ended(api, [job_id], "failed"))
        frozen.thaw()
        await eventually(seen.empty)
    assert len(duties.runs(job_id)) == 2 * before


async def _ended(api: Api, jobs: list[str], status: str = "completed") -> bool:
    answers = [(await api.get(job_id))["status"] for job_id in jobs]
    return set(answers) == {status}


@pytest.mark.full
async def test_two_gateways_return_no_older_state_while_the_store_lags_and_one_of_them_restarts(
    system: System, nats: NatsServer, duties: Behaviours
) -> None:
    other = free_port()
    system.start_all(stages=STAGES)
    system.start("gateway", port=other)
    await system.ready()
    urls = [system.url, f"http://127.0.0.1:{other}"]
    async with Api(system.url) as api, Observer(nats.url) as seen, Follower(urls, pause=0.01) as follower:
        first = await api.submit("gated")
        await eventually(lambda: duties.runs(first))
        follower.add(first)
        await eventually(lambda: follower.seen(first).get("status") == "processing")
        store = system["status-store"]
        for _ in range(2):
            store.freeze()
            duties.open_gate()
            jobs = [await api.submit("quick") for _ in range(3)]
            follower.add(*jobs)
            await published(seen, [first, *jobs])
            # At least one of the gateways has noticed, and returns the state in the stream.
            await wait_until_returned(follower, jobs, status="completed")
            system.all("gateway")[-1].kill()
            new = system.start("gateway", port=other)
            await new.wait_log("ready")
            asked = follower.asked
            await eventually(lambda asked=asked: follower.asked > asked + 20, what="both are asked again")
            store.thaw()
            await eventually(seen.empty)
    follower.check()
