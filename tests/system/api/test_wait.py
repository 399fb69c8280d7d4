"""GET /jobs/{id}?wait=: answers when the job is finished, or after the given time."""

import asyncio

import nats.errors
import pytest

from tests.support.api import Api
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.conftest import Live


@pytest.mark.parametrize(("behaviour", "status"), [("gate", "completed"), ("raise", "failed")])
async def test_a_wait_is_answered_when_the_job_finishes(http: Api, live: Live, behaviour: str, status: str) -> None:
    live.script.write("preparing", "gate")
    live.script.write("closing", "permanent" if behaviour == "raise" else "ok")
    job_id = await http.submit("scripted")
    await eventually(lambda: live.script.runs("preparing", job_id))
    waiting = asyncio.create_task(http.http.get(f"/jobs/{job_id}", params={"wait": "120"}, timeout=130))
    assert (await http.get(job_id))["status"] in {"pending", "processing"}
    assert not waiting.done()
    live.script.open_gate()
    response = await asyncio.wait_for(waiting, 60)
    assert response.status_code == 200
    assert response.json()["status"] == status
    assert response.json() == await http.get(job_id), "a plain GET says the same from then on"


async def test_many_callers_may_wait_for_the_same_job(http: Api, live: Live) -> None:
    live.script.write("preparing", "gate")
    job_id = await http.submit("scripted")
    waiting = [asyncio.create_task(http.http.get(f"/jobs/{job_id}?wait=120", timeout=130)) for _ in range(20)]
    await eventually(lambda: live.script.runs("preparing", job_id))
    live.script.open_gate()
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert {answer.json()["status"] for answer in answers} == {"completed"}


async def test_a_wait_is_answered_when_its_time_is_over(http: Api) -> None:
    job_id = await http.submit("mock_process")
    for wait in ("0.3", "0", "1e-3", "0.0"):
        response = await http.http.get(f"/jobs/{job_id}", params={"wait": wait})
        assert response.status_code == 200
        assert response.json()["status"] == "pending"


async def test_a_wait_for_a_finished_job_is_answered_at_once(http: Api) -> None:
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "completed")
    response = await http.http.get(f"/jobs/{job_id}", params={"wait": "300"}, timeout=60)
    assert response.json()["status"] == "completed"


async def test_a_cancel_ends_the_wait(http: Api) -> None:
    job_id = await http.submit("mock_process")
    waiting = asyncio.create_task(http.http.get(f"/jobs/{job_id}?wait=120", timeout=130))
    assert (await http.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await asyncio.wait_for(waiting, 60)).json()["status"] == "canceled"


@pytest.mark.parametrize("wait", ["-1", "300.1", "301", "x", "", "nan", "inf", "-inf", "1e400", "1_0", "٣", "0x10"])
async def test_an_invalid_wait_is_422_and_named(http: Api, wait: str) -> None:
    job_id = await http.submit("mock_process")
    response = await http.http.get(f"/jobs/{job_id}", params={"wait": wait})
    assert response.status_code == 422, response.text
    assert response.json()["field"] == "wait"
    assert "'wait'" in response.json()["detail"]


@pytest.mark.parametrize("job_id", ["00000000-0000-4000-8000-000000000000", "x", "%00"])
async def test_a_wait_for_an_unknown_job_is_404_at_once(http: Api, job_id: str) -> None:
    response = await http.http.get(f"/jobs/{job_id}", params={"wait": "300"}, timeout=60)
    assert response.status_code == 404
    assert response.json() == {"detail": "Job not found"}


async def test_a_parameter_that_is_misspelt_or_given_twice_is_422_and_named(http: Api) -> None:
    job_id = await http.submit("mock_process")
    for method, path, field in (
        ("GET", f"/jobs/{job_id}?wiat=30", "wiat"),
        ("GET", f"/jobs/{job_id}?wait=0&wait=1", "wait"),
        ("POST", f"/jobs/{job_id}/retry?form=start", "form"),
        ("POST", f"/jobs/{job_id}/retry?from=start&from=failed", "from"),
    ):
        response = await http.http.request(method, path)
        assert response.status_code == 422, f"{method} {path}: {response.text}"
        assert response.json()["field"] == field


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_wait_ends_when_its_caller_disconnects(http: Api, live: Live, when: str) -> None:
    job_id = await http.submit("mock_process")
    async with Observer(live.nats.url, "nothing") as broker:

        async def is_watched() -> bool:
            """Ask the server itself whether anybody subscribes to this job."""
            try:
                await broker.nc.request(f"heimdex-stored.jobs.probe.{job_id}", timeout=0.2)
            except nats.errors.NoRespondersError:
                return False
            except nats.errors.TimeoutError:
                return True
            raise AssertionError("nobody answers there")

        async def is_not_watched() -> bool:
            return not await is_watched()

        callers = []
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", live.system.port)
            writer.write(f"GET /jobs/{job_id}?wait=300 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            callers.append(writer)
            if when == "at once":
                writer.close()
        if when == "later":
            await eventually(is_watched, what="somebody waits")
        await http.get(job_id)  # whoever was accepted before this answer is being served
        for writer in callers:
            writer.close()
        await eventually(is_not_watched, what="nobody waits any more")
