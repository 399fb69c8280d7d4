"""POST /jobs/{id}/cancel: a queued job never starts, a running one is interrupted, and the job stays canceled."""

import asyncio

import pytest

from tests.support.api import TERMINAL, Api
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.asking import cancel
from tests.system.api.conftest import Live
from tests.system.api.sse import history


async def test_a_job_that_waits_for_its_next_attempt_can_be_canceled(http: Api, live: Live) -> None:
    job_id = await http.submit("mock_process")
    await cancel(http, job_id)
    live.script.write("preparing", "raise", "gate")
    job_id = await http.submit("scripted")
    await eventually(lambda: live.script.runs("preparing", job_id))
    await cancel(http, job_id)
    live.script.open_gate()
    again = await http.submit("scripted")
    await http.wait_until(again, "completed")
    assert (await http.get(job_id))["status"] == "canceled"


@pytest.mark.parametrize("end", ["completed", "failed", "canceled"])
async def test_a_cancel_of_a_finished_job_is_409_and_changes_nothing(http: Api, live: Live, end: str) -> None:
    live.script.write("preparing", "permanent" if end == "failed" else "ok")
    job_id = await http.submit("mock_process" if end == "canceled" else "scripted")
    if end == "canceled":
        await cancel(http, job_id)
    before = await http.wait_until(job_id, end)
    answer = await cancel(http, job_id, status=409)
    assert end in str(answer["detail"])
    assert await http.get(job_id) == before


@pytest.mark.parametrize("job_id", ["00000000-0000-4000-8000-000000000000", "x", "%00", "*"])
async def test_a_cancel_of_an_unknown_job_is_404(http: Api, job_id: str) -> None:
    assert await cancel(http, job_id, status=404) == {"detail": "Job not found"}


async def test_a_job_whose_cancel_races_with_its_run_gets_exactly_one_terminal_event(
    http: Api, live: Live, stored: Observer
) -> None:
    live.script.write("preparing", "gate")
    jobs = await asyncio.gather(*(http.submit("scripted") for _ in range(30)))
    for job_id in jobs:
        await eventually(lambda job_id=job_id: live.script.runs("preparing", job_id))  # type: ignore[misc]
    live.script.open_gate()
    answers = await asyncio.gather(*(http.http.post(f"/jobs/{job_id}/cancel") for job_id in jobs))
    for job_id, answer in zip(jobs, answers, strict=True):
        assert answer.status_code in {200, 202, 409}, answer.text
        expected = "completed" if answer.status_code == 409 else "canceled"
        await http.wait_until(job_id, expected)
        await eventually(lambda job_id=job_id: TERMINAL & set(stored.subjects("heimdex-stored.jobs", job_id)))  # type: ignore[misc]
        ends = [token for token in stored.subjects("heimdex-stored.jobs", job_id) if token in TERMINAL]
        assert ends == [expected]
        assert [entry["event"] for entry in await history(http, job_id)][-1] == expected


async def test_one_of_many_concurrent_cancels_ends_the_job_and_the_others_are_409(http: Api, stored: Observer) -> None:
    job_id = await http.submit("mock_process")
    answers = await asyncio.gather(*(http.http.post(f"/jobs/{job_id}/cancel") for _ in range(10)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] + [409] * 9, [answer.text for answer in answers]
    assert stored.subjects("heimdex-stored.jobs", job_id) == ["extracting", "canceled"]
