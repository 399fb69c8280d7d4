"""POST /jobs/batch: all or none, in order."""

from typing import Any

import pytest

from tests.support.api import Api
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.conftest import Live


async def test_a_batch_of_a_thousand_jobs_is_accepted_and_every_job_is_returned(http: Api, stored: Observer) -> None:
    answer = await http.http.post("/jobs/batch", json={"jobs": [{"type": "mock_process"}] * 1000})
    assert answer.status_code == 202
    ids = answer.json()["job_ids"]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids), "in the order of the jobs: the ids are ordered by time"
    for job_id in (ids[0], ids[499], ids[-1]):
        assert (await http.get(job_id))["status"] == "pending"


async def test_each_job_of_a_batch_has_its_own_fields(http: Api, live: Live) -> None:
    body = {"jobs": [{"type": "scripted"}, {"type": "scripted", "fail_at_stage": "preparing"}, {"type": "scripted"}]}
    ids = (await http.http.post("/jobs/batch", json=body)).json()["job_ids"]
    ends = [(await http.wait_until(job_id, "completed", "failed"))["status"] for job_id in ids]
    assert ends == ["completed", "failed", "completed"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "jobs"),
        ({"jobs": []}, "jobs"),
        ({"jobs": {}}, "jobs"),
        ({"jobs": [{"type": "mock_process"}] * 1001}, "jobs"),
        ({"jobs": [{"type": "mock_process"}, 7]}, "jobs[1]"),
        ({"jobs": [{"type": "mock_process"}, {"type": "no_such"}]}, "jobs[1].type"),
        ({"jobs": [{"type": "mock_process", "extra": 1}]}, "jobs[0].extra"),
        ({"jobs": [{"type": "mock_process"}], "more": 1}, "more"),
    ],
)
async def test_a_batch_with_an_error_is_refused_completely(
    http: Api, stored: Observer, body: dict[str, Any], field: str
) -> None:
    answer = await http.http.post("/jobs/batch", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    marker = await http.submit("mock_process")
    await eventually(lambda: stored.subjects("heimdex-stored.jobs", marker))
    assert len(stored.seen) == 1, "nothing of the batch was stored before the marker"


async def test_a_batch_that_would_exceed_the_limit_is_refused_completely(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.env["HEIMDEX_MAX_PENDING_JOBS"] = "10"
    system.start_all(without=("extracting",))
    await system.ready()
    answer = await api.http.post("/jobs/batch", json={"jobs": [{"type": "mock_process"}] * 11})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    async with Observer(nats.url) as seen:
        assert (await seen.api(f"STREAM.INFO.{JOBS}"))["state"]["messages"] == 0
    assert (await api.http.post("/jobs/batch", json={"jobs": [{"type": "mock_process"}] * 10})).status_code == 202
