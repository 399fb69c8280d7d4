"""Idempotency keys: the same key and body give the same job, whoever asks and whatever is down."""

import asyncio
import base64
import hashlib
import json

import pytest

from tests.harness.api import Api
from tests.harness.pipelines.scripted import STAGES, Script
from tests.harness.servers import NatsServer, PostgresServer
from tests.harness.services import System
from tests.harness.waiting import eventually
from tests.harness.watching import Observer

BODY = {"type": "mock_process"}


async def test_fifty_callers_that_race_with_one_key_get_one_job(http: Api, stored: Observer) -> None:
    answers = await asyncio.gather(
        *(http.http.post("/jobs", json=BODY, headers={"Idempotency-Key": '"race"'}) for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["job_id"] for answer in answers}
    assert {answer.headers["Location"] for answer in answers} == {f"/jobs/{job_id}"}
    assert stored.subjects("heimdex-stored.jobs", job_id) == ["extracting"]


async def test_a_key_is_the_same_quoted_or_bare_and_a_body_whatever_its_spaces_and_order(http: Api) -> None:
    first = await http.submit(headers={"Idempotency-Key": '"a \\"key\\""'}, fail_at_stage="indexing")
    second = await http.http.post(
        "/jobs",
        content=b' { "fail_at_stage" : "indexing", "type":"mock_process" } ',
        headers={"Idempotency-Key": 'a "key"', "Content-Type": "application/json"},
    )
    assert second.json() == {"job_id": first}


async def test_a_key_with_another_body_is_refused(http: Api) -> None:
    await http.submit(headers={"Idempotency-Key": "other"})
    answer = await http.http.post(
        "/jobs", json={**BODY, "fail_at_stage": "indexing"}, headers={"Idempotency-Key": "other"}
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize("key", ['""', '"unended', "x" * 256])
async def test_what_is_no_key_is_refused(http: Api, key: str) -> None:
    answer = await http.http.post("/jobs", json=BODY, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


async def test_a_body_that_is_refused_uses_up_no_key(http: Api) -> None:
    headers = {"Idempotency-Key": "refused-first"}
    assert (await http.http.post("/jobs", json={"type": "no_such"}, headers=headers)).status_code == 422
    await http.submit(headers=headers)


async def test_a_key_keeps_its_job_over_restarts_with_postgres_down_and_through_another_gateway(
    system: System, api: Api, nats: NatsServer, own_postgres: PostgresServer
) -> None:
    system.env["HEIMDEX_DATABASE_URL"] = own_postgres.url
    system.start_all()
    await system.ready()
    headers = {"Idempotency-Key": "lasting"}
    job_id = await api.submit(headers=headers)
    await api.wait_until(job_id, "completed")
    # The end has left the stream, and the server's duplicate window is emptied by its restart.
    own_postgres.kill()
    nats.kill()
    nats.start()
    system["gateway"].kill()
    system.start("gateway")
    async with Api(system.url) as other:
        await eventually_up(other)
        assert await other.submit(headers=headers) == job_id
    own_postgres.start()


async def eventually_up(api: Api) -> None:
    async def accepts() -> bool:
        return await api.is_up() and (await api.http.post("/jobs", json=BODY)).status_code == 202

    await eventually(accepts)


async def test_a_key_whose_first_caller_died_before_its_job_was_stored_makes_it_at_the_repeat(
    scripted: System, api: Api, script: Script, nats: NatsServer
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    headers = {"Idempotency-Key": "orphan"}
    job_id = await api.submit("scripted", headers=headers)
    await api.wait_until(job_id, "completed")
    async with Observer(nats.url) as seen:
        # As the crash would have left it: a key, not marked as stored, of a job that is nowhere.
        subject = "$KV.HEIMDEX_IDEMPOTENCY." + hashlib.sha256(b"orphan").hexdigest()
        answer = await seen.api("STREAM.MSG.GET.KV_HEIMDEX_IDEMPOTENCY", {"last_by_subj": subject})
        made = json.loads(base64.b64decode(answer["message"]["data"]))
        made["stored"] = False
        made["job"]["job_id"] = "01990000-0000-7000-8000-000000000001"
        await seen.nc.publish(subject, json.dumps(made).encode())
        await seen.nc.flush()
    again = await api.submit("scripted", headers=headers)
    assert again == "01990000-0000-7000-8000-000000000001"
    await api.wait_until(again, "completed")
