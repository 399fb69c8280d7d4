"""Fault 11: random kills and freezes of everything under a steady load. HEIMDEX_CHAOS_SEED repeats a run.

`make test` has a short one, `make chaos` those of HEIMDEX_CHAOS_SECONDS.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.support.cancels import Cancels
from tests.support.chaos import Storm, Target, node_targets, server_target, service_target
from tests.support.cluster import Cluster
from tests.support.following import Follower
from tests.support.load import Load
from tests.support.pipelines import with_pipelines
from tests.support.pipelines.cargo import cargo, expected
from tests.support.rows import fetch
from tests.support.services import MOCK_STAGES, System
from tests.support.spinning import Spinners
from tests.support.waiting import eventually
from tests.support.watching import Observer

SECONDS = float(os.environ.get("HEIMDEX_CHAOS_SECONDS", "25"))
SEED = int(os.environ["HEIMDEX_CHAOS_SEED"])  # conftest.py chooses one where none is set
PER_SECOND = 10
CALM_JOBS = 30
#: What no process logs while nothing is hit.
MISHAPS = ("delivery_superseded", "delivery_dropped", "job_restored", "message_unusable", "deliveries_lost")
#: What the auditor allows: what follows from a kill or a freeze at any moment.
STORM = (
    "dropped",
    "superseded",
    "topology",
    "repeated",
    "unclaimed",
    "isolated",
    "worker_lost",
    "lost",
    "left",
    "behind",
)
#: A message that a killed store held comes back after the store's ack wait of 30 s.
PATIENCE = 150

#: How many characters each output of a job has, in turn: rows of one page, and rows whose values Postgres keeps apart.
SIZES = (50, 900, 8000)


def body(number: int) -> dict[str, Any]:
    """Return what to submit: of ten jobs, three carry nothing, and one fails. No two carry the same."""
    if number % 10 in {0, 3, 6}:
        return {"type": "mock_process"}
    params = {"seed": number, "size": SIZES[number % len(SIZES)]}
    return {"type": "carrying", "params": params} | ({"fail_at_stage": "analyzing"} if number % 10 == 9 else {})


BODIES = [body(number) for number in range(5000)]


@dataclass(frozen=True)
class Nats:
    """What the storm may hit of it. `url`: of all its nodes."""

    url: str
    targets: list[Target]
    replicas: int


@pytest.mark.allows(*STORM)
@pytest.mark.timeout(SECONDS + 3 * PATIENCE + 120)
async def test_random_faults_lose_no_job_leave_none_stuck_and_show_no_older_state(
    new_system: NewSystem, nats: Any, own_postgres: Any
) -> None:
    one = Nats(nats.url, [server_target(nats, "nats", 1.5, lambda: nats.child.pid)], 1)
    await go_through_a_storm(new_system, one, own_postgres)


@pytest.mark.full
@pytest.mark.allows(*STORM)
@pytest.mark.timeout(SECONDS + 3 * PATIENCE + 240)
async def test_random_faults_on_three_nodes_of_a_busy_machine(
    new_system: NewSystem, cluster: Cluster, own_postgres: Any, scratch: Path
) -> None:
    three = Nats(cluster.url, node_targets(cluster, 0.7), 3)
    with Spinners(scratch, SECONDS + 3 * PATIENCE):
        await go_through_a_storm(new_system, three, own_postgres)


async def go_through_a_storm(new_system: NewSystem, nats: Nats, own_postgres: Any) -> None:
    """Run jobs without faults, then a load under random faults, then jobs without faults again."""
    system = new_system(
        nats.url,
        own_postgres.url,
        HEIMDEX_MOCK_TIME_SCALE="0.1",
        HEIMDEX_LOG_LEVEL="info",
        HEIMDEX_STREAM_REPLICAS=str(nats.replicas),
        HEIMDEX_ACK_WAIT_SECONDS="5",
        **with_pipelines("cargo"),
    )
    ports = [system.port, free_port()]
    storm = Storm(
        [
            *(service_target(system, "gateway", 1, port) for port in ports),
            *(service_target(system, stage, 1) for stage in MOCK_STAGES for _ in range(2)),
            *(service_target(system, "status-store", 1.5) for _ in range(2)),
            *nats.targets,
            server_target(own_postgres, "postgres", 1.5, lambda: own_postgres.pid),
        ],
        SEED,
    )
    print(f"\nHEIMDEX_CHAOS_SEED={SEED} HEIMDEX_CHAOS_SECONDS={SECONDS:g}")
    await system.ready()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        await be_calm(system, urls, nats.url, own_postgres.url)
        async with (
            Follower(urls, newest=15, pause=0.02) as follower,
            Load(urls, PER_SECOND, BODIES, on_accepted=follower.add) as load,
            Cancels(urls, load, SEED) as cancels,
        ):
            await storm.blow(SECONDS)
            await storm.calm()
            storm.note("calm")
            await cancels.stop()
            await load.more(10)
            await load.stop()
            ends = await load.all_end(own_postgres.url, PATIENCE)
            storm.note("all have ended")
        async with Observer(nats.url) as seen:
            await eventually(seen.empty, PATIENCE, what="the stream is empty")
        storm.note("the stream is empty")
        follower.check()
        await check_rows(own_postgres.url, ends, load.to_fail, cancels)
        compared = await check_carried(own_postgres.url, load.bodies)
        await system.ready()
        await be_calm(system, urls, nats.url, own_postgres.url)
    except BaseException:
        print("\n".join(storm.diary))
        raise
    lost = sum(end == "failed" for job_id, end in ends.items() if job_id not in load.to_fail)
    print(
        f"{len(load.accepted)} accepted, {dict(load.refused)} refused, {storm.kills} kills, {storm.freezes} freezes; "
        f"{len(cancels.done)} canceled; {lost} failed with worker lost; {compared} carried what they had to; "
        f"{follower.asked} GETs, {follower.unanswered} without an answer, the slowest {follower.slowest:.1f} s; "
        f"accepting paused for {load.longest_pause():.1f} s at most\n" + "\n".join(storm.diary[-3:])
    )


async def be_calm(system: System, urls: list[str], nats_url: str, database_url: str) -> None:
    """Run some jobs without faults: each reaches the expected state at its first attempt, and no message twice."""
    before = [entry for event in MISHAPS for entry in system.logged(event)]
    async with Load(urls, PER_SECOND, BODIES) as load:
        await load.more(CALM_JOBS)
        await load.stop()
        ends = await load.all_end(database_url, PATIENCE)
    async with Observer(nats_url) as seen:
        await eventually(seen.empty, PATIENCE, what="the stream is empty")
    wrong = {job: end for job, end in ends.items() if end != ("failed" if job in load.to_fail else "completed")}
    assert not wrong, f"in a calm: {wrong}"
    again = await fetch(
        database_url,
        "SELECT job_id::text, step, kind FROM job_events WHERE ended_attempt > 1 AND job_id = ANY($1::text[]::uuid[])",
        [job for job in ends if job not in load.to_fail],
    )
    assert not again, f"in a calm these were tried again: {again[:5]}"
    mishaps = [entry for event in MISHAPS for entry in system.logged(event) if entry not in before]
    assert not mishaps, f"in a calm: {mishaps[:5]}"


async def check_carried(database_url: str, bodies: dict[str, dict[str, Any]]) -> int:
    """Assert that each job has the parameters that it was submitted with, and the outputs that follow from them.

    Returns the number of jobs that have outputs.
    """
    carried = [job_id for job_id, submitted in bodies.items() if submitted["type"] == "carrying"]
    rows = await fetch(
        database_url,
        "SELECT id::text, status, stage, params::text, outputs::text, result::text, message::text FROM jobs"
        " WHERE id = ANY($1::text[]::uuid[])",
        carried,
    )
    compared = 0
    for row in rows:
        params = cargo(**bodies[row["id"]]["params"])
        wanted = expected(params)
        assert json.loads(row["params"]) == params, row
        if row["status"] == "completed":
            outputs = json.loads(row["outputs"]) | {row["stage"]: json.loads(row["result"])["output"]}
            assert outputs == wanted, row
        else:
            message = json.loads(row["message"])
            assert "params" not in message, row
            outputs = {run["stage"]: run.get("output") for run in message.get("finished", ())}
            assert outputs == {stage: wanted[stage] for stage in MOCK_STAGES[: len(outputs)]}, row
        compared += bool(outputs)
    assert len(rows) == len(carried)
    return compared


async def check_rows(database_url: str, ends: dict[str, str], to_fail: set[str], cancels: Cancels) -> None:
    """Assert that each job has the expected state, or failed because too many workers were killed."""
    rows = {row["id"]: row for row in await fetch(database_url, "SELECT id::text, status, error FROM jobs")}
    for job_id, row in rows.items():
        # Those that a killed gateway had accepted without an answer are among them.
        assert row["status"] in {"completed", "failed", "canceled"}, f"{job_id} is stuck: {row}"
        assert row["status"] != "canceled" or job_id in cancels.done | cancels.unknown, row
    for job_id in cancels.done:
        assert rows[job_id]["status"] == "canceled", f"a cancel that was answered did not hold: {rows[job_id]}"
    for job_id in ends:
        row = rows[job_id]
        if row["status"] == "completed":
            assert job_id not in to_fail
        elif row["status"] == "failed":
            assert "worker lost" in row["error"] or (job_id in to_fail and "fail_at_stage" in row["error"]), row
    # No stage had more attempts than the policy allows: four. (Giving up may itself take another delivery.)
    worst = await fetch(database_url, "SELECT max(ended_attempt) AS n FROM job_events WHERE kind <> 'failed'")
    assert (worst[0]["n"] or 0) <= 4, worst
