"""Idempotency keys: the same key and body give the same job, for any caller and during any outage."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import MOCK_STAGES, System
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.conftest import Live

BODY = {"type": "mock_process"}


async def test_fifty_concurrent_callers_with_one_key_get_one_job(http: Api, stored: Observer) -> None:
    answers = await asyncio.gather(
        *(http.http.post("/jobs", json=BODY, headers={"Idempotency-Key": '"race"'}) for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["job_id"] for answer in answers}
    assert {answer.headers["Location"] for answer in answers} == {f"/jobs/{job_id}"}
    assert stored.subjects("heimdex-stored.jobs", job_id) == ["extracting"]


async def test_a_key_may_be_quoted_or_bare_and_a_body_may_differ_in_spaces_and_order(http: Api) -> None:
    first = await http.submit(headers={"Idempotency-Key": '"a \\"key\\""'}, fail_at_stage="indexing")
    second = await http.http.post(
        "/jobs",
        content=b' { "fail_at_stage" : "indexing", "type":"mock_process" } ',
        headers={"Idempotency-Key": 'a "key"', "Content-Type": "application/json"},
    )
    assert second.json() == {"job_id": first}


async def test_a_batch_with_a_key_is_accepted_once_from_many_callers(http: Api, stored: Observer) -> None:
    body = {"jobs": [BODY, {**BODY, "fail_at_stage": "indexing"}, {**BODY, "delay_seconds": 600}]}
    headers = {"Idempotency-Key": "batch"}
    answers = await asyncio.gather(*(http.http.post("/jobs/batch", json=body, headers=headers) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    first = answers[0].json()
    assert all(answer.json() == first for answer in answers)
    assert len(set(first["job_ids"])) == 3
    for job_id, token in zip(first["job_ids"], ("extracting", "extracting", "later"), strict=True):
        assert stored.subjects("heimdex-stored.jobs", job_id) == [token]
    for path, other in (("/jobs/batch", {"jobs": [BODY]}), ("/jobs", BODY)):
        answer = await http.http.post(path, json=other, headers=headers)
        assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


async def test_a_key_with_another_body_is_refused(http: Api) -> None:
    await http.submit(headers={"Idempotency-Key": "other"})
    answer = await http.http.post(
        "/jobs", json={**BODY, "fail_at_stage": "indexing"}, headers={"Idempotency-Key": "other"}
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize("key", ["", '""', '"unended', "x" * 256, f'"{"x" * 256}"', "Schlüssel", "a\tb"])
async def test_an_invalid_key_is_refused(http: Api, key: str) -> None:
    answer = await http.http.post("/jobs", json=BODY, headers={"Idempotency-Key": key.encode()})
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


async def test_two_keys_are_refused(http: Api) -> None:
    answer = await http.http.post("/jobs", json=BODY, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


async def test_a_body_that_is_refused_uses_up_no_key(http: Api) -> None:
    headers = {"Idempotency-Key": "refused-first"}
    assert (await http.http.post("/jobs", json={"type": "no_such"}, headers=headers)).status_code == 422
    await http.submit(headers=headers)


@pytest.mark.allows("nats_killed")
async def test_a_key_keeps_its_job_across_restarts_gateways_and_a_postgres_outage(
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


async def test_fifty_concurrent_callers_of_two_gateways_get_one_job_while_postgres_is_down(
    system: System, api: Api, nats: NatsServer, own_postgres: PostgresServer
) -> None:
    system.env["HEIMDEX_DATABASE_URL"] = own_postgres.url
    system.start_all(without=MOCK_STAGES)
    port = free_port()
    system.start("gateway", port=port)
    await system.ready()
    own_postgres.kill()
    headers = {"Idempotency-Key": "race"}
    async with Api(f"http://127.0.0.1:{port}") as other, Observer(nats.url, "heimdex-stored.>") as stored:
        callers = (gateway.submit(headers=headers) for gateway in (api, other) * 25)
        (job_id,) = set(await asyncio.gather(*callers))
        # A later request gets the same job, although Postgres cannot return its state.
        assert await other.submit(headers=headers) == job_id
        assert stored.subjects("heimdex-stored.jobs", job_id) == ["extracting"]
    own_postgres.start()


async def eventually_up(api: Api) -> None:
    async def accepts() -> bool:
        return await api.is_up() and (await api.http.post("/jobs", json=BODY)).status_code == 202

    await eventually(accepts)


async def test_a_repeated_request_creates_the_job_if_the_first_gateway_died_before_storing_it(
    scripted: System, api: Api, script: Script, nats: NatsServer
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    headers = {"Idempotency-Key": "orphan"}
    job_id = await api.submit("scripted", headers=headers)
    await api.wait_until(job_id, "completed")
    # As the crash would have left it: a key, not marked as stored, of a job that is nowhere.
    await rewrite_key(nats, "orphan", job_id="01990000-0000-7000-8000-000000000001")
    again = await api.submit("scripted", headers=headers)
    assert again == "01990000-0000-7000-8000-000000000001"
    await api.wait_until(again, "completed")


async def test_a_repeated_request_creates_the_batch_if_the_first_gateway_died_before_storing_it(
    scripted: System, api: Api, script: Script, nats: NatsServer
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    request: dict[str, Any] = {"json": {"jobs": [{"type": "scripted"}] * 3}, "headers": {"Idempotency-Key": "orphans"}}
    ids = (await api.http.post("/jobs/batch", **request)).json()["job_ids"]
    for job_id in ids:
        await api.wait_until(job_id, "completed")
    lost = [f"01990000-0000-7000-8000-00000000000{n}" for n in range(3)]
    await rewrite_key(nats, "orphans", others=lost[1:], job_id=lost[0])
    for _ in range(2):
        assert (await api.http.post("/jobs/batch", **request)).json() == {"job_ids": lost}
    for job_id in lost:
        await api.wait_until(job_id, "completed")
        assert len(script.runs("preparing", job_id)) == 1


@pytest.mark.allows("nats_killed")
@pytest.mark.parametrize("ago", [{}, {"created_at": "2025-10-28T12:00:00.000000Z"}], ids=["just now", "long ago"])
async def test_a_finished_job_does_not_run_again_although_its_key_was_never_marked(
    scripted: System, api: Api, script: Script, nats: NatsServer, ago: dict[str, str]
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    headers = {"Idempotency-Key": "unmarked"}
    job_id = await api.submit("scripted", headers=headers)
    await api.wait_until(job_id, "completed")
    await rewrite_key(nats, "unmarked", **ago)
    # After a restart its duplicate window has only what is still in the stream.
    nats.kill()
    nats.start()

    async def repeated() -> bool:
        answer = await api.http.post("/jobs", json={"type": "scripted"}, headers=headers)
        assert answer.status_code == 500 or answer.json() == {"job_id": job_id}
        return answer.status_code == 202

    await eventually(repeated)
    # One that comes after it has gone through all stages; the first would have, too.
    await api.wait_until(await api.submit("scripted"), "completed")
    assert len(script.runs("preparing", job_id)) == 1


async def test_a_key_expires_after_a_day(live: Live, http: Api) -> None:
    async with Observer(live.nats.url) as seen:
        info = await seen.api("STREAM.INFO.KV_HEIMDEX_IDEMPOTENCY")
    assert info["config"]["max_age"] == 24 * 3600 * 10**9


async def rewrite_key(nats: NatsServer, key: str, others: Sequence[str] = (), **job: str) -> None:
    """Change the stored record of a key, and remove its mark. others: the other jobs of a batch."""
    async with Observer(nats.url) as seen:
        subject = "$KV.HEIMDEX_IDEMPOTENCY." + hashlib.sha256(key.encode()).hexdigest()
        answer = await seen.api("STREAM.MSG.GET.KV_HEIMDEX_IDEMPOTENCY", {"last_by_subj": subject})
        record = json.loads(base64.b64decode(answer["message"]["data"]))
        record["stored"] = False
        record["job"] |= job
        record["others"] = others
        await seen.nc.publish(subject, json.dumps(record).encode())
        await seen.nc.flush()
