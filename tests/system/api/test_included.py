"""Parameters and outputs of jobs: what a caller sends, what `include` returns on each route, and what a retry keeps."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from heimdex_cli.embedded.ports import free_port
from tests.support import servers
from tests.support.api import Api
from tests.support.keys import KEYS, entries
from tests.support.pipelines.parametrized import DECLARED, STAGES, Clips
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import System
from tests.support.watching import Observer
from tests.system.api.asking import cancel, retry
from tests.system.api.test_once import rewrite_key

DEFAULTS = {"language": "auto", "box": {"width": 640, "height": 360}, "tags": [], "threshold": 0.5, "any": None}
SENT = {"source": "https://media.example/é.mp4", "tags": ["a", "b"], "any": [1.5, {"x": None}]}
KEPT = {**DEFAULTS, **SENT}
CUT = {"pieces": 2, "of": SENT["source"]}
OUTPUTS = {"cutting": CUT, "checking": None, "joining": {"joined": 2, "any": SENT["any"]}}
EIGHT = {"id", "status", "stage", "progress", "result", "error", "created_at", "updated_at"}


@dataclass
class Running:
    """A system with workers of `clip`. No worker of the other job types runs."""

    system: System
    nats: NatsServer
    clips: Clips


@pytest.fixture(scope="module")
def running_system(postgres: PostgresServer) -> Iterator[Running]:
    folder = servers.temporary_folder()
    nats = servers.start_nats(folder)
    system = System(nats.url, servers.new_database(postgres), folder)
    clips = Clips(folder / "clips")
    system.env |= clips.env
    try:
        system.start_all(stages=STAGES)
        servers.run_async(system.ready)
        yield Running(system, nats, clips)
    finally:
        system.end()
        servers.remove(nats)
    system.check_logs()


@pytest.fixture
def running(running_system: Running) -> Iterator[Running]:
    running_system.clips.mend()
    yield running_system
    running_system.clips.mend()


@pytest_asyncio.fixture
async def http(running: Running) -> AsyncIterator[Api]:
    async with Api(running.system.url) as api:
        yield api


async def shown(api: Api, job_id: str, include: str = "params,outputs", **query: Any) -> dict[str, Any]:
    """Return the job with what `include` adds."""
    response = await api.http.get(f"/jobs/{job_id}", params={"include": include, **query})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


async def failed(running: Running, api: Api, stage: str = "checking", **fields: Any) -> str:
    """Return a job that failed at this stage; every stage succeeds from then on."""
    running.clips.spoil(stage)
    job_id = await api.submit("clip", params=SENT, **fields)
    await api.wait_until(job_id, "failed")
    running.clips.mend()
    return job_id


async def test_a_job_shows_its_params_and_outputs_only_when_asked(http: Api) -> None:
    job_id = await http.submit("clip", params=SENT)
    done = await shown(http, job_id, wait=15)
    assert done["status"] == "completed", done
    assert (done["params"], done["outputs"]) == (KEPT, OUTPUTS)
    assert done["result"]["output"] == OUTPUTS["joining"]
    assert done["result"]["stages_completed"] == list(STAGES)
    assert list(done["outputs"]) == list(STAGES)
    for include, keys in (("params", {"params"}), ("outputs", {"outputs"}), ("outputs,params", {"params", "outputs"})):
        assert await shown(http, job_id, include) == {key: done[key] for key in EIGHT | keys}
    assert await http.get(job_id) == {key: done[key] for key in EIGHT}


async def test_a_job_that_waits_shows_its_params_and_no_outputs(http: Api) -> None:
    job_id = await http.submit("clip", params=SENT, delay_seconds=600)
    for _ in range(2):
        job = await shown(http, job_id)
        assert (job["status"], job["params"], job["outputs"]) == ("pending", KEPT, {})
        await http.wait_until_listed([job_id])
    stopped = await http.http.post(f"/jobs/{job_id}/cancel", params={"include": "params,outputs"})
    assert stopped.status_code == 200
    assert stopped.json()["params"] == KEPT
    assert stopped.json()["outputs"] == {}
    assert stopped.json().keys() == EIGHT | {"params", "outputs"}


async def test_a_job_of_a_type_without_params_shows_empty_ones(http: Api) -> None:
    for params in (None, {}):
        job_id = await http.submit("mock_process", params=params, delay_seconds=600)
        job = await shown(http, job_id)
        assert (job["params"], job["outputs"]) == ({}, {})
        assert (await cancel(http, job_id)).keys() == EIGHT


async def test_the_list_adds_what_is_asked_for(http: Api) -> None:
    done = await http.submit("clip", params=SENT)
    waiting = await http.submit("clip", params=SENT, delay_seconds=600)
    await http.wait_until(done, "completed")
    await http.wait_until_listed([done], status="completed")
    await http.wait_until_listed([waiting])
    page = await http.http.get("/jobs", params={"type": "clip", "include": "params,outputs", "limit": 2})
    first, second = page.json()["jobs"]
    assert (first["id"], first["params"], first["outputs"]) == (waiting, KEPT, {})
    assert (second["id"], second["params"], second["outputs"]) == (done, KEPT, OUTPUTS)
    plain = await http.http.get("/jobs", params={"type": "clip", "limit": 2})
    assert [job.keys() for job in plain.json()["jobs"]] == [EIGHT, EIGHT]
    await cancel(http, waiting)


@pytest.mark.parametrize("include", ["output", "", "params,", "params,params", "params, outputs", "PARAMS", "*"])
async def test_an_unknown_word_of_include_is_refused_on_every_route(http: Api, include: str) -> None:
    job_id = "01990000-0000-7000-8000-000000000001"
    for method, path in (
        ("GET", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}?wait=1"),
        ("GET", "/jobs"),
        ("POST", f"/jobs/{job_id}/cancel"),
        ("POST", f"/jobs/{job_id}/retry"),
    ):
        response = await http.http.request(method, httpx.URL(path).copy_merge_params({"include": include}))
        assert (response.status_code, response.json()["field"]) == (422, "include"), (method, path)


@pytest.mark.parametrize("path", ["/jobs", "/jobs/01990000-0000-7000-8000-000000000001"])
async def test_a_repeated_include_is_refused(http: Api, path: str) -> None:
    response = await http.http.get(f"{path}?include=params&include=outputs")
    assert (response.status_code, response.json()["field"]) == (422, "include")


@pytest.mark.parametrize(
    ("params", "status", "field"),
    [
        (b'{"source":1}', 422, "params.source"),
        (b"{}", 422, "params.source"),
        (b"null", 422, "params.source"),
        (b"[]", 422, "params"),
        (rb'{"source":"\ud800"}', 422, "params.source"),
        (rb'{"source":"\u0000"}', 422, "params.source"),
        (b'{"source":"a","threshold":1e999}', 422, "params.threshold"),
        (b'{"source":"%s"}' % (b"a" * 65 * 1024), 413, "params"),
        (b'{"source":"%s"}' % (b"a" * 900 * 1024), 413, "params"),
        (b'{"source":"a","any":%s%s}' % (b"[" * 10_000, b"]" * 10_000), 400, None),
        (b'{"source":"a","any":NaN}', 400, None),
        (b'{"source":"\xff"}', 400, None),
    ],
)
async def test_params_that_do_not_fit_store_nothing(
    running: Running, http: Api, params: bytes, status: int, field: str | None
) -> None:
    job = b'{"type":"clip","params":%s}' % params
    headers = {"Content-Type": "application/json"}
    async with Observer(running.nats.url, "heimdex-stored.jobs.>") as stored:
        batch = b'{"jobs":[{"type":"quiet"},%s]}' % job
        for path, body, prefix in (("/jobs", job, ""), ("/jobs/batch", batch, "jobs[1].")):
            response = await http.http.post(path, content=body, headers=headers)
            assert response.status_code == status, response.text
            if field is not None:
                assert response.json()["field"] == f"{prefix}{field}"
            assert set(response.json()) <= {"detail", "field"}
        assert not stored.seen


async def test_a_body_over_1_mib_is_refused_before_its_params_are_read(http: Api) -> None:
    body = b'{"type":"clip","params":{"source":"a"%s}}' % (b" " * 1024 * 1024)
    response = await http.http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, list(response.json())) == (413, ["detail"])
    assert "64 KiB" in response.json()["detail"]


async def test_every_message_of_a_job_has_its_params_and_a_batch_its_own(running: Running, http: Api) -> None:
    async with Observer(running.nats.url, "heimdex-stored.jobs.>") as stored:
        jobs = [{"type": "clip", "params": {"source": name}} for name in ("one", "two")] + [{"type": "mock_process"}]
        one, two, plain = (await http.http.post("/jobs/batch", json={"jobs": jobs})).json()["job_ids"]
        await asyncio.gather(*(http.wait_until(job_id, "completed") for job_id in (one, two)))
        for job_id, name in ((one, "one"), (two, "two")):
            messages = stored.payloads("heimdex-stored.jobs", job_id)
            assert [message["params"] for message in messages] == [{"source": name, **DEFAULTS}] * 4
        assert "params" not in stored.payloads("heimdex-stored.jobs", plain)[0]
    await cancel(http, plain)


async def test_one_key_and_an_omitted_or_sent_default_are_one_job_and_its_record_has_no_params(
    running: Running, http: Api
) -> None:
    headers = {"Idempotency-Key": "one"}
    job_id = await http.submit("clip", headers, params={"source": "a"}, delay_seconds=600)
    for params in ({"source": "a", "language": "auto"}, {"tags": [], "source": "a"}):
        assert await http.submit("clip", headers, params=params, delay_seconds=600) == job_id
    other = {"type": "clip", "params": {"source": "b"}, "delay_seconds": 600}
    refused = await http.http.post("/jobs", json=other, headers=headers)
    assert (refused.status_code, refused.json()["field"]) == (422, "Idempotency-Key")
    async with Observer(running.nats.url) as seen:
        subject = "$KV.HEIMDEX_IDEMPOTENCY." + hashlib.sha256(b"one").hexdigest()
        answer = await seen.api("STREAM.MSG.GET.KV_HEIMDEX_IDEMPOTENCY", {"last_by_subj": subject})
        assert "params" not in json.loads(base64.b64decode(answer["message"]["data"]))["job"]
    await cancel(http, job_id)


async def test_a_repeat_brings_the_params_of_a_job_that_was_never_stored(running: Running, http: Api) -> None:
    headers = {"Idempotency-Key": "lost"}
    await http.submit("clip", headers, params=SENT, delay_seconds=600)
    # As a crash of the gateway would have left it: a key, not marked as stored, of a job that is nowhere.
    lost = "01990000-0000-7000-8000-000000000011"
    await rewrite_key(running.nats, "lost", job_id=lost)
    assert await http.submit("clip", headers, params=SENT, delay_seconds=600) == lost
    assert (await shown(http, lost))["params"] == KEPT
    await cancel(http, lost)


async def test_a_retry_keeps_params_and_earlier_outputs_and_one_from_the_start_drops_the_outputs(
    running: Running, http: Api
) -> None:
    job_id = await failed(running, http)
    assert (await shown(http, job_id))["outputs"] == {"cutting": CUT}
    await running.system["checking"].terminate()  # otherwise the job may have gone on when the response is sent
    await running.system["cutting"].terminate()
    try:
        again = await retry(http, job_id, "?include=params,outputs")
        assert (again["params"], again["outputs"]) == (KEPT, {"cutting": CUT})
        await cancel(http, job_id)
        assert (await shown(http, job_id))["outputs"] == {"cutting": CUT}
        again = await retry(http, job_id, "?from=start&include=outputs,params")
        assert (again["params"], again["outputs"]) == (KEPT, {})
        assert again.keys() == EIGHT | {"params", "outputs"}
    finally:
        for stage in ("cutting", "checking"):
            await running.system.start(stage).wait_log("ready")
    assert (await shown(http, job_id, wait=15))["outputs"] == OUTPUTS


@pytest.mark.parametrize(
    ("declared", "field"), [("newer", "params.codec"), ("bare", "params")], ids=["one more", "no params any more"]
)
async def test_params_that_do_not_fit_any_more_can_only_go_on(
    running: Running, http: Api, declared: str, field: str
) -> None:
    job_id = await failed(running, http)
    port = free_port()
    gateway = running.system.start("gateway", env={DECLARED: declared}, port=port)
    await gateway.wait_log("ready")
    async with Api(f"http://127.0.0.1:{port}") as newer:
        refused = await retry(newer, job_id, "?from=start", status=409)
        assert (refused["field"], "from=failed" in str(refused["detail"])) == (field, True)
        assert (await newer.get(job_id))["status"] == "failed"
        await retry(newer, job_id)
    assert (await shown(http, job_id, wait=15))["outputs"] == OUTPUTS
    assert await gateway.terminate() == 0


async def test_another_tenants_params_and_outputs_are_not_to_be_had(running: Running) -> None:
    port = free_port()
    gateway = running.system.start("gateway", env={"HEIMDEX_API_KEYS": entries()}, port=port)
    await gateway.wait_log("ready")
    url = f"http://127.0.0.1:{port}"
    async with Api(url, KEYS["acme"]) as acme, Api(url, KEYS["beta"]) as beta:
        done = await acme.submit("clip", params=SENT)
        await acme.wait_until(done, "completed")
        waiting = await acme.submit("clip", params=SENT, delay_seconds=600)
        spoilt = await failed(running, acme)
        await acme.wait_until_listed([done, waiting, spoilt])
        for job_id in (done, waiting, spoilt):
            for method, path in (
                ("GET", f"/jobs/{job_id}?"),
                ("GET", f"/jobs/{job_id}?wait=1&"),
                ("POST", f"/jobs/{job_id}/cancel?"),
                ("POST", f"/jobs/{job_id}/retry?"),
                ("POST", f"/jobs/{job_id}/retry?from=start&"),
            ):
                response = await beta.http.request(method, f"{path}include=params,outputs")
                assert (response.status_code, response.json()) == (404, {"detail": "Job not found"})
        listed = await beta.http.get("/jobs", params={"include": "params,outputs"})
        assert listed.json() == {"jobs": [], "next_cursor": None}
        assert (await shown(acme, spoilt))["outputs"] == {"cutting": CUT}, "nobody has retried it"
        # The same key of another tenant is another job.
        headers = {"Idempotency-Key": "shared"}
        mine = await acme.submit("clip", headers, params=SENT, delay_seconds=600)
        theirs = await beta.submit("clip", headers, params={"source": "x"}, delay_seconds=600)
        assert (await shown(beta, theirs))["params"] == {"source": "x", **DEFAULTS}
        for api, job_id in ((acme, mine), (acme, waiting), (beta, theirs)):
            await cancel(api, job_id)
        assert (await acme.http.get("/job-types")).status_code == 200
    async with Api(url) as nobody:
        assert (await nobody.http.get("/job-types")).status_code == 401
    assert await gateway.terminate() == 0


async def test_the_job_types_are_listed_with_their_stages_and_params(http: Api) -> None:
    response = await http.http.get("/job-types")
    assert response.status_code == 200
    clip, mock, quiet = response.json()["job_types"]
    assert response.json().keys() == {"job_types"}
    assert [each.keys() for each in (clip, mock, quiet)] == [{"type", "stages", "params"}] * 3
    assert [each["type"] for each in (clip, mock, quiet)] == ["clip", "mock_process", "quiet"]
    assert clip["stages"] == [{"name": name, "expected_seconds": 1.0} for name in STAGES]
    assert mock["params"] is None
    definitions = clip["params"]["$defs"]
    assert definitions["Clip"]["required"] == ["source"]
    assert definitions["Clip"]["properties"]["language"]["default"] == "auto"
    assert quiet["params"]["$defs"]["Quiet"]["additionalProperties"] is False
    wrong = await http.http.get("/job-types?type=clip")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "type")
