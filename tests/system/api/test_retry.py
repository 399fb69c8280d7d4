"""POST /jobs/{id}/retry: a failed or canceled job starts its next run, and keeps its history."""

import asyncio

import pytest

from tests.support.api import Api
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.asking import retry
from tests.system.api.conftest import Live
from tests.system.api.sse import history


async def failed_job(api: Api, live: Live, stage: str) -> str:
    """Return a job that failed permanently at this stage. Every stage succeeds from then on."""
    live.script.write(stage, "permanent")
    job_id = await api.submit("scripted")
    await api.wait_until(job_id, "failed")
    live.script.write(stage, "ok")
    return job_id


async def test_a_failed_job_runs_again_from_the_stage_that_failed(http: Api, live: Live) -> None:
    job_id = await failed_job(http, live, "grinding")
    before = await http.get(job_id)
    job = await retry(http, job_id)
    assert (job["id"], job["created_at"]) == (job_id, before["created_at"])
    assert (job["status"] in {"pending", "processing", "completed"}, job["error"]) == (True, None)
    assert str(job["updated_at"]) >= before["updated_at"]
    done = await http.wait_until(job_id, "completed")
    assert done["result"]["stages_completed"] == ["preparing", "grinding", "closing"]
    runs = [(stage, attempt) for stage, _, attempt, _ in live.script.runs(job_id=job_id)]
    assert runs == [("preparing", 1), ("grinding", 1), ("grinding", 1), ("closing", 1)], "attempts count anew"


async def test_from_start_runs_all_stages_again(http: Api, live: Live) -> None:
    job_id = await failed_job(http, live, "grinding")
    await retry(http, job_id, "?from=start")
    done = await http.wait_until(job_id, "completed")
    assert done["result"]["stages_completed"] == ["preparing", "grinding", "closing"]
    stages = [stage for stage, *_ in live.script.runs(job_id=job_id)]
    assert stages == ["preparing", "grinding", "preparing", "grinding", "closing"]


async def test_the_history_has_all_runs(http: Api, live: Live) -> None:
    live.script.write("preparing", "raise")
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "failed")
    live.script.write("preparing", "permanent")
    await retry(http, job_id, "?from=failed")
    await eventually(lambda: _runs(http, job_id, 2))
    live.script.write("preparing", "ok")
    await retry(http, job_id)
    await http.wait_until(job_id, "completed")
    events = await history(http, job_id)
    assert [(entry["run"], entry["event"], entry["stage"]) for entry in events] == [
        (1, "submitted", "preparing"),
        (1, "attempt_failed", "preparing"),
        (1, "attempt_failed", "preparing"),
        (1, "failed", "preparing"),
        (2, "retried", "preparing"),
        (2, "failed", "preparing"),
        (3, "retried", "preparing"),
        (3, "handed_over", "grinding"),
        (3, "handed_over", "closing"),
        (3, "completed", "closing"),
    ]
    places = [tuple(map(int, entry["id"].split("."))) for entry in events]
    assert places == sorted(set(places))


async def _runs(api: Api, job_id: str, run: int) -> bool:
    """Whether this run of the job has failed."""
    return any(entry["run"] == run and entry["event"] == "failed" for entry in await history(api, job_id))


async def test_a_job_that_waits_for_its_next_run_is_pending(http: Api, live: Live) -> None:
    job_id = await http.submit("mock_process")  # no worker of its stage runs
    assert (await http.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    job = await retry(http, job_id)
    assert (job["status"], job["stage"], job["progress"], job["error"], job["result"]) == (
        "pending",
        None,
        0,
        None,
        None,
    )
    assert job == await http.get(job_id)


async def test_a_job_that_was_canceled_in_a_stage_continues_from_it(http: Api, live: Live) -> None:
    live.script.write("grinding", "gate")
    job_id = await http.submit("scripted")
    await eventually(lambda: live.script.runs("grinding", job_id))
    assert (await http.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    live.script.write("grinding", "ok")
    await retry(http, job_id)
    await http.wait_until(job_id, "completed")
    assert len(live.script.runs("preparing", job_id)) == 1
    assert len(live.script.runs("grinding", job_id)) == 2


async def test_a_job_that_was_canceled_before_its_first_stage_starts_there(http: Api, live: Live) -> None:
    live.script.write("preparing", "gate")
    job_id = await http.submit("scripted")
    assert (await http.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    live.script.open_gate()
    await retry(http, job_id)
    await http.wait_until(job_id, "completed")


@pytest.mark.parametrize("status", ["pending", "processing", "completed"])
async def test_a_retry_of_a_job_that_is_neither_failed_nor_canceled_is_409_and_changes_nothing(
    http: Api, live: Live, status: str
) -> None:
    live.script.write("grinding", "gate" if status == "processing" else "ok")
    job_id = await http.submit("mock_process" if status == "pending" else "scripted")
    await http.wait_until(job_id, status)
    for query in ("", "?from=start", "?from=failed"):
        answer = await retry(http, job_id, query, status=409)
        assert ("completed" if status == "completed" else "not finished") in str(answer["detail"])
    assert (await http.get(job_id))["status"] == status
    assert {entry["run"] for entry in await history(http, job_id)} == {1}


@pytest.mark.parametrize("job_id", ["00000000-0000-4000-8000-000000000000", "x", "%00", "*"])
async def test_a_retry_of_an_unknown_job_is_404(http: Api, job_id: str) -> None:
    assert await retry(http, job_id, status=404) == {"detail": "Job not found"}


@pytest.mark.parametrize("start", ["", "grinding", "START", "1"])
async def test_an_invalid_from_parameter_is_422_and_named(http: Api, start: str) -> None:
    job_id = await http.submit("mock_process")
    answer = await retry(http, job_id, f"?from={start}", status=422)
    assert answer["field"] == "from"
    assert "'start'" in str(answer["detail"])


async def test_one_of_many_concurrent_retries_starts_a_run_and_the_others_are_409(
    http: Api, live: Live, stored: Observer
) -> None:
    # Not the last stage: it has a time-out, and ten retries may take longer.
    job_id = await failed_job(http, live, "grinding")
    live.script.write("grinding", "gate")
    answers = await asyncio.gather(*(http.http.post(f"/jobs/{job_id}/retry") for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    live.script.write("grinding", "ok")
    live.script.open_gate()
    await eventually(lambda: "completed" in stored.subjects("heimdex-stored.jobs", job_id) or _ended(http, job_id))
    events = await history(http, job_id)
    assert [entry["event"] for entry in events].count("retried") == 1
    assert {entry["run"] for entry in events} == {1, 2}


async def _ended(api: Api, job_id: str) -> bool:
    return (await api.get(job_id))["status"] in {"completed", "failed"}
