"""Fault 11: random kills and freezes of everything under a steady load. HEIMDEX_CHAOS_SEED repeats a run.

`make test` has one of a minute, `make chaos` one of HEIMDEX_CHAOS_SECONDS.
"""

import os
from typing import Any

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.harness.cancels import Cancels
from tests.harness.following import Follower
from tests.harness.load import Load
from tests.harness.rows import fetch
from tests.harness.services import MOCK_STAGES
from tests.harness.storm import Storm, server_target, service_target
from tests.harness.waiting import eventually
from tests.harness.watching import Observer

SECONDS = float(os.environ.get("HEIMDEX_CHAOS_SECONDS", "60"))
SEED = int(os.environ["HEIMDEX_CHAOS_SEED"])  # conftest.py chooses one where none is set
PER_SECOND = 10
#: A message that a killed store held comes back after the store's ack wait of 30 s.
PATIENCE = 150

BODIES: list[dict[str, Any]] = [
    *([{"type": "mock_process"}] * 9),
    {"type": "mock_process", "fail_at_stage": "analyzing"},
]


@pytest.mark.allows("dropped", "superseded", "topology", "isolated", "worker_lost", "lost")
@pytest.mark.timeout(SECONDS + 2 * PATIENCE + 120)
async def test_the_storm_loses_nothing_sticks_nothing_and_turns_nothing_back(
    new_system: NewSystem, nats: Any, own_postgres: Any
) -> None:
    system = new_system(nats.url, own_postgres.url, HEIMDEX_MOCK_TIME_SCALE="0.1", HEIMDEX_LOG_LEVEL="info")
    ports = [system.port, free_port()]
    storm = Storm(
        [
            *(service_target(system, "gateway", 1, port) for port in ports),
            *(service_target(system, stage, 1) for stage in MOCK_STAGES for _ in range(2)),
            *(service_target(system, "status-store", 1.5) for _ in range(2)),
            server_target(nats, "nats", 1.5, lambda: nats.child.pid),
            server_target(own_postgres, "postgres", 1.5, lambda: own_postgres.pid),
        ],
        SEED,
    )
    print(f"\nHEIMDEX_CHAOS_SEED={SEED} HEIMDEX_CHAOS_SECONDS={SECONDS:g}")
    await system.ready()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        async with (
            Follower(urls, newest=15, pause=0.02) as follower,
            Load(urls, PER_SECOND, BODIES, on_accepted=follower.add) as load,
            Cancels(urls, load, SEED) as cancels,
        ):
            await load.more(10)
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
    except BaseException:
        print("\n".join(storm.diary))
        raise
    lost = sum(end == "failed" for job_id, end in ends.items() if job_id not in load.to_fail)
    print(
        f"{len(load.accepted)} accepted, {dict(load.refused)} refused, {storm.kills} kills, {storm.freezes} freezes; "
        f"{len(cancels.done)} canceled; {lost} failed with worker lost; "
        f"{follower.asked} GETs, {follower.unanswered} without an answer, the slowest {follower.slowest:.1f} s; "
        f"accepting paused for {load.longest_pause():.1f} s at most\n" + "\n".join(storm.diary[-3:])
    )


async def check_rows(database_url: str, ends: dict[str, str], to_fail: set[str], cancels: Cancels) -> None:
    """Each job ended as it was asked to, or because its workers were killed too often."""
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
    # No stage was run past the policy of one try and three retries. (Giving up may itself take another delivery.)
    worst = await fetch(database_url, "SELECT max(ended_attempt) AS n FROM job_events WHERE kind <> 'failed'")
    assert (worst[0]["n"] or 0) <= 4, worst
