"""POST /jobs/retry: many finished jobs run again, each once."""

import asyncio

import pytest

from tests.support.api import Api
from tests.support.waiting import eventually
from tests.system.api.conftest import Live


async def test_all_failed_jobs_of_a_type_run_again_and_the_others_do_not(http: Api, live: Live) -> None:
    live.script.write("preparing", "permanent")
    failed = await asyncio.gather(*(http.submit("scripted") for _ in range(12)))
    for job_id in failed:
        await http.wait_until(job_id, "failed")
    await http.wait_until_listed(failed, status="failed")
    live.script.clear()
    done = await http.submit("scripted")
    await http.wait_until(done, "completed")
    answer = await http.http.post("/jobs/retry", params={"status": "failed", "type": "scripted"})
    assert answer.status_code == 200
    assert answer.json()["retried"] >= 12
    assert answer.json()["more"] is False
    for job_id in failed:
        await eventually(lambda job_id=job_id: ended_well(http, job_id))  # type: ignore[misc]
    runs = [len(live.script.runs("preparing", job_id)) for job_id in failed]
    assert runs == [2] * len(failed)
    assert len(live.script.runs("preparing", done)) == 1


async def ended_well(api: Api, job_id: str) -> bool:
    return (await api.get(job_id))["status"] == "completed"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "status"),
        ("status=completed", "status"),
        ("status=failed&type=no_such", "type"),
        ("status=failed&status=canceled", "status"),
        ("status=failed&limit=5", "limit"),
    ],
)
async def test_a_wrong_parameter_is_named(http: Api, query: str, field: str) -> None:
    answer = await http.http.post(f"/jobs/retry?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)
