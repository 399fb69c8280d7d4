"""Thousands of jobs that the worker of a stage does not know, in front of one that it knows."""

from pathlib import Path

import pytest

from heimdex_contracts import messages, subjects
from tests.support.api import Api
from tests.support.histories import due
from tests.support.pipelines.deployed import RUNS, declared, runs
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

JOBS = 5_000


@pytest.mark.allows("refused")
async def test_a_known_job_passes_thousands_of_unknown_ones(
    system: System, nats: NatsServer, api: Api, scratch: Path
) -> None:
    system.env |= {RUNS: str(scratch / "runs"), **declared({"film": ("mix",)})}
    system.start("status-store")
    system.start("gateway")
    await system.ready()
    async with Observer(nats.url, "heimdex.refusals.>") as seen:
        for _ in range(JOBS):
            job = due(type="song", stage="mix", route=("mix", "print"))
            await seen.nc.publish(subjects.job_subject("mix", job.job_id), messages.encode(job))
        await seen.nc.flush()
        await eventually(lambda: stored(seen))
        await system.start("mix").wait_log("ready")
        job_id = await api.submit("film")
        await api.wait_until(job_id, "completed")
        assert runs(scratch) == [(job_id, "mix", 1)]
        await eventually(lambda: len({msg.subject for msg in seen.seen}) == JOBS, what="each unknown job is refused")
        await eventually(lambda: stored(seen), what="only the unknown jobs are left, for a worker that knows them")
        await system["mix"].terminate()


async def stored(seen: Observer) -> bool:
    return await seen.count() == JOBS
