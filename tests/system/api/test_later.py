"""`run_at` and `delay_seconds`: pending until their time, whatever is restarted meanwhile."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.asking import cancel
from tests.system.api.conftest import Live


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


async def test_a_scheduled_job_is_pending_and_does_not_start_before_its_time(http: Api, live: Live) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    job_id = await http.submit("scripted", run_at=at.isoformat())
    before = await http.get(job_id)
    assert (before["status"], before["stage"], before["progress"]) == ("pending", None, 0)
    after = await http.wait_until(job_id, "completed")
    # One machine, one clock; the schedule is the server's.
    assert moment(after["updated_at"]) >= at
    assert after["created_at"] == before["created_at"]
    assert after["result"]["total_duration_seconds"] < 2 + (moment(after["updated_at"]) - at).total_seconds()


async def test_a_past_time_or_a_delay_of_zero_means_now(http: Api) -> None:
    for fields in ({"delay_seconds": 0}, {"run_at": "2020-01-01T00:00:00Z"}, {"run_at": None, "delay_seconds": None}):
        await http.wait_until(await http.submit("scripted", **fields), "completed")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"run_at": "tomorrow"}, "run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"run_at": 5}, "run_at"),
        ({"run_at": "9999-12-31T23:59:59Z"}, "run_at"),
        ({"delay_seconds": -1}, "delay_seconds"),
        ({"delay_seconds": "5"}, "delay_seconds"),
        ({"delay_seconds": True}, "delay_seconds"),
        ({"delay_seconds": 1e300}, "delay_seconds"),
        ({"delay_seconds": 1, "run_at": "2030-01-01T00:00:00Z"}, "run_at"),
    ],
)
async def test_an_invalid_time_is_refused(http: Api, fields: dict[str, Any], field: str) -> None:
    answer = await http.http.post("/jobs", json={"type": "mock_process", **fields})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_scheduled_job_that_is_canceled_never_starts(http: Api, live: Live, stored: Observer) -> None:
    job_id = await http.submit("scripted", delay_seconds=1.5)
    assert (await cancel(http, job_id))["status"] == "canceled"
    later = await http.submit("scripted", delay_seconds=2)
    await http.wait_until(later, "completed")  # its time is after the other's
    assert live.script.runs(job_id=job_id) == []
    assert stored.subjects("heimdex-stored.jobs", job_id) == ["later", "canceled"]
    assert (await http.get(job_id))["status"] == "canceled"


@pytest.mark.allows("nats_killed")
async def test_a_scheduled_job_survives_a_restart_of_everything(system: System, api: Api, nats: NatsServer) -> None:
    system.start_all()
    await system.ready()
    job_id = await api.submit(delay_seconds=4)
    await api.wait_until_listed([job_id])
    system.end()
    nats.kill()
    nats.start()
    system.start_all()
    await system.ready()
    async with Api(system.url) as other:
        await other.wait_until(job_id, "completed")
    async with Observer(nats.url) as seen:
        await eventually(seen.empty)


@pytest.mark.allows("nats_killed", "restored")
async def test_a_scheduled_job_is_scheduled_again_after_the_stream_was_lost(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    job_id = await api.submit(delay_seconds=8)
    await api.wait_until_listed([job_id])
    async with Observer(nats.url) as seen:
        await seen.api("STREAM.DELETE.HEIMDEX_JOBS")
    nats.kill()
    nats.start()
    job = await api.wait_until(job_id, "completed")
    assert moment(job["updated_at"]) - moment(job["created_at"]) >= timedelta(seconds=8)
