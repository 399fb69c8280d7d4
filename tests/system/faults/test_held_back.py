"""The stream's leader is held back: other nodes deliver messages that it has not applied, and it reports its sequence.

Nothing is killed and no leader changes, so every response is correct, only late, or a 500.
"""

import asyncio
import random
from pathlib import Path

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.support.cluster import Cluster
from tests.support.holding import EVERY_HOLD, STARVED, Hold
from tests.support.pipelines.counted import STAGES, Begun
from tests.support.receiver import SECRET, Receiver
from tests.support.rows import fetch
from tests.support.services import System
from tests.support.traffic import Traffic
from tests.support.waiting import eventually
from tests.support.watching import Observer

SEED = 20260
PATIENCE = 180


@pytest.mark.full
async def test_a_starved_leader_causes_no_wrong_response_and_loses_no_job(
    new_system: NewSystem, database_url: str, scratch: Path
) -> None:
    await hold_back(STARVED, STARVED.cluster(scratch), new_system, database_url, scratch, times=3)


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", ["2.12.8", ""])
@pytest.mark.parametrize("hold", EVERY_HOLD, ids=lambda hold: hold.name)
async def test_a_leader_that_is_held_back_causes_no_wrong_response_and_loses_no_job(
    new_system: NewSystem, database_url: str, scratch: Path, hold: Hold, version: str
) -> None:
    # An older server flushes each message by itself: it needs minutes for what a newer one does in seconds.
    times = 5 if version else 12
    await hold_back(hold, hold.cluster(scratch, version), new_system, database_url, scratch, times)


async def hold_back(
    hold: Hold, cluster: Cluster, new_system: NewSystem, database_url: str, scratch: Path, times: int
) -> None:
    """Hold the leader back under requests of all kinds to two gateways."""
    begun = Begun(scratch / "begun")
    system = new_system(
        cluster.url,
        database_url,
        HEIMDEX_STREAM_REPLICAS="3",
        HEIMDEX_MOCK_TIME_SCALE="0.2",
        # Longer than any hold: no lease lapses.
        HEIMDEX_ACK_WAIT_SECONDS="30",
        HEIMDEX_CALLBACK_SECRET=SECRET,
        HEIMDEX_CALLBACK_ALLOW="127.0.0.0/8",
        **begun.env,
    )
    ports = [system.port, free_port()]
    chance = random.Random(SEED)
    try:
        await cluster.start()
        system.start_all(stages=STAGES)
        system.start("gateway", port=ports[1])
        await system.ready()
        await cluster.whole()
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        with Receiver() as receiver, hold.neighbours(scratch, 300):
            async with Traffic(urls, SEED, 15, receiver.url) as traffic:
                for _ in range(times):
                    await asyncio.sleep(chance.uniform(0.2, 0.6))
                    await asyncio.gather(hold.back(cluster, chance), traffic.burst(chance.choice(ports), 100))
                await traffic.stop()
                await check(traffic, system, begun, cluster, database_url)
                await eventually(
                    lambda: all(receiver.of(job_id) for job_id in traffic.jobs["called"]),
                    PATIENCE,
                    "each callback is delivered",
                )
        behind = [entry for entry in system.logged("publish_repeated") if "is at sequence" in entry.get("error", "")]
        print(f"\n{len(traffic.accepted)} accepted; behind {len(behind)} times; {dict(traffic.unanswered)}")
    finally:
        cluster.end()


async def check(traffic: Traffic, system: System, begun: Begun, cluster: Cluster, database_url: str) -> None:
    """Assert that all jobs have finished as their callers were answered, and that no attempt began twice."""

    async def ended() -> dict[str, str]:
        rows = await fetch(database_url, "SELECT id::text, status FROM jobs")
        by_job = {row["id"]: row["status"] for row in rows}
        missing = [job_id for job_id in traffic.accepted if job_id not in by_job]
        stuck = [job_id for job_id, status in by_job.items() if status in {"pending", "processing"}]
        assert not missing, f"{len(missing)} accepted jobs have no row: {missing[:5]}"
        assert not stuck, f"{len(stuck)} jobs are stuck: {stuck[:5]}"
        return by_job

    for job_id in traffic.cancel_asked:
        system.allow("superseded", job_id=job_id)
    async with Observer(cluster.url) as seen:
        await eventually(seen.empty, PATIENCE, what="the stream is empty")
    by_job = await eventually(ended, PATIENCE, "all have ended")
    assert not traffic.wrong, f"{len(traffic.wrong)} wrong answers: {traffic.wrong[:5]}"
    traffic.follower.check()
    restoring = [text for text in traffic.unanswered if "being restored" in text]
    assert not restoring, f"said of jobs that nothing has happened to: {restoring}"
    statuses = {job_id: by_job[job_id] for job_id in traffic.canceled}
    assert set(statuses.values()) <= {"canceled"}, f"a cancel that was answered did not hold: {statuses}"
    for kind in ("plain", "keyed", "later", "called"):
        ends = {job_id: by_job[job_id] for job_id in traffic.jobs[kind] if by_job[job_id] != "completed"}
        assert not ends, f"{kind}: {ends}"
    runs = await fetch(database_url, "SELECT job_id::text, max(run) AS run FROM job_events GROUP BY job_id")
    again = {row["job_id"] for row in runs if row["run"] >= 2}
    assert again >= traffic.retried, f"retries that were answered did not happen: {traffic.retried - again}"
    assert again <= set(traffic.jobs["retried"]), "only what was asked for runs again"
    assert not begun.twice(), f"begun twice: {begun.twice()[:5]}"
    assert not system.logged("job_restored")
    for event in ("delivery_superseded", "delivery_dropped"):
        others = [entry for entry in system.logged(event) if entry["job_id"] not in traffic.cancel_asked]
        assert not others, f"{len(others)} {event} of jobs that nobody canceled: {others[:3]}"
