"""Fault 7, NATS: it ends every connection with an error, and refuses new ones for a while."""

import pytest

from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import fetch
from tests.support.servers import NatsServer, reload_nats
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer


@pytest.mark.parametrize(
    "refuses",
    [
        pytest.param("max_connections: -1", id="full"),
        pytest.param("authorization { user: somebody, password: else }", id="password", marks=pytest.mark.full),
    ],
)
async def test_disconnected_workers_keep_their_jobs_and_no_attempt_is_counted(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str, refuses: str
) -> None:
    # One retry, so that a lost attempt would show; leases that outlast what a busy machine needs for the rest.
    system.env |= {"HEIMDEX_RETRY_BACKOFF_SECONDS": "0.1", "HEIMDEX_ACK_WAIT_SECONDS": "30"}
    system.start_all(stages=STAGES)
    await system.ready()
    async with Follower([system.url]) as follower:
        jobs = [await api.submit("gated") for _ in range(4)]
        follower.add(*jobs)
        await eventually(lambda: len(duties.runs()) == len(jobs))
        reload_nats(nats, refuses)
        for service in system.services:
            await service.wait_log("nats_refused")
        await eventually(lambda: unready(api), what="/readyz tells")
        reload_nats(nats, "")
        for service in system.services:
            await service.wait_log("nats_reconnected")
        duties.open_gate()
        for job_id in jobs:
            await api.wait_until(job_id, "completed")
        async with Observer(nats.url) as seen:
            await eventually(seen.empty)
            assert await seen.count("HEIMDEX_ATTEMPTS") == 0
    follower.check()
    assert sorted(duties.runs()) == sorted((job_id, 1, system["working"].pid) for job_id in jobs)
    assert not await fetch(database_url, "SELECT FROM job_events WHERE kind = 'attempt_failed'")
    assert all(service.running for service in system.services)


async def unready(api: Api) -> bool:
    return (await api.http.get("/readyz")).status_code == 503
