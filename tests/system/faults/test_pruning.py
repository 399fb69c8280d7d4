"""Finished jobs are pruned after HEIMDEX_RETENTION_DAYS, unfinished ones never, so that no table only grows."""

import pytest

from tests.support.api import Api
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import execute, fetch, statuses
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer


async def test_finished_jobs_are_pruned_with_their_history_and_unfinished_ones_are_kept(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    system.env |= {"HEIMDEX_RETENTION_DAYS": "0", "HEIMDEX_RETRY_BACKOFF_SECONDS": "0.1"}
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        ended = [await api.submit("quick") for _ in range(3)] + [await api.submit("raiser")]
        for job_id in ended:
            await api.wait_until(job_id, "completed", "failed")
        running = [await api.submit("gated") for _ in range(2)]
        for job_id in running:
            await api.wait_until(job_id, "processing")
        # As if they had lain there for weeks; the retention of the next store is about one second.
        await execute(
            database_url,
            "UPDATE jobs SET created_at = created_at - interval '9 d', updated_at = updated_at - interval '8 d'",
        )
        assert await system["status-store"].terminate() == 0
        system.env["HEIMDEX_RETENTION_DAYS"] = "0.00001"
        pruned = await system.start("status-store").wait_log("jobs_pruned")
        assert pruned["count"] == len(ended)
        assert await statuses(database_url, ended + running) == dict.fromkeys(running, "processing")
        left = await fetch(database_url, "SELECT DISTINCT job_id::text AS id FROM job_events")
        assert {row["id"] for row in left} == set(running)
        for job_id in ended:
            assert (await api.http.get(f"/jobs/{job_id}")).status_code == 404
        duties.open_gate()
        for job_id in running:
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty)


@pytest.mark.full
async def test_thousands_of_jobs_are_pruned_in_batches_while_others_run(
    system: System, api: Api, nats: NatsServer, database_url: str
) -> None:
    system.env["HEIMDEX_RETENTION_DAYS"] = "0.00001"
    system.start_all(without=("status-store",))
    await system.ready()
    store = system.start("status-store", env={"HEIMDEX_RETENTION_DAYS": "0"})
    await store.wait_log("ready")
    assert await store.terminate() == 0
    await execute(
        database_url,
        """
        INSERT INTO jobs (id, type, run, step, attempt, progress, status, stage, result, created_at, updated_at)
        SELECT gen_random_uuid(), 'mock_process', 1, 3, 0, 100, 'completed', 'indexing', '{}',
               now() - interval '1 h', now() - interval '1 h' FROM generate_series(1, 3000)
        """,
        "INSERT INTO job_events (job_id, step, attempt, run, kind, at) "
        "SELECT id, 0, 0, 1, 'submitted', now() FROM jobs",
    )
    store = system.start("status-store")
    job_id = await api.submit()
    async with Observer(nats.url) as seen:
        await eventually(seen.empty, what="events are recorded meanwhile")
    await store.wait_log("jobs_pruned")
    rows = await fetch(database_url, "SELECT count(*) AS n FROM jobs WHERE id <> $1::text::uuid", job_id)
    assert rows[0]["n"] == 0
    rows = await fetch(database_url, "SELECT count(*) AS n FROM job_events WHERE kind = 'submitted'")
    assert rows[0]["n"] <= 1
