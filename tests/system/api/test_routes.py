"""Every message of a job carries its route: the stages of its type as they were declared when it was submitted."""

import uuid

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.asking import retry
from tests.system.api.conftest import Live


async def routes(stored: Observer, http: Api, job_id: str) -> list[list[str]]:
    """Wait until the job is completed, and return the route of each of its messages."""
    await http.wait_until(job_id, "completed")
    await eventually(lambda: stored.subjects("heimdex-stored.jobs", job_id)[-1:] == ["completed"])
    return [payload["route"] for payload in stored.payloads("heimdex-stored.jobs", job_id)]


async def test_each_way_to_submit_a_job_writes_its_route(http: Api, stored: Observer, live: Live) -> None:
    route = list(STAGES)
    single = await http.submit("scripted")
    later = await http.submit("scripted", delay_seconds=0.2)
    keyed = await http.submit("scripted", headers={"Idempotency-Key": uuid.uuid4().hex})
    batch = await http.http.post("/jobs/batch", json={"jobs": [{"type": "scripted"}, {"type": "mock_process"}]})
    first, second = batch.json()["job_ids"]
    for job_id in (single, later, keyed, first):
        seen = await routes(stored, http, job_id)
        assert seen == [route] * (5 if job_id == later else 4)
    (waiting,) = stored.payloads("heimdex-stored.jobs", second)
    assert waiting["route"] == ["extracting", "analyzing", "indexing"]


async def test_a_retry_keeps_the_route(http: Api, stored: Observer, live: Live) -> None:
    live.script.write("grinding", "permanent")
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "failed")
    live.script.clear()
    await retry(http, job_id)
    seen = await routes(stored, http, job_id)
    assert seen == [list(STAGES)] * 6
