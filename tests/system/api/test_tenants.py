"""A tenant sees its own jobs only: on every route, another tenant's job is like one that does not exist."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from heimdex_cli.embedded.ports import free_port
from tests.support import servers
from tests.support.api import Api
from tests.support.keys import KEYS, entries
from tests.support.rows import fetch
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.conftest import Live
from tests.system.api.sse import entries as sse_entries
from tests.system.api.sse import history

#: Answered in front of the routes, or about no job at all.
OPEN = {"/healthz", "/readyz"}
BODIES: dict[str, Any] = {"/jobs": {"type": "mock_process"}, "/jobs/batch": {"jobs": [{"type": "mock_process"}]}}


@dataclass
class Callers:
    """One client per key of a gateway with keys, `nobody` without a key, `unkeyed` of a gateway without keys."""

    acme: Api
    acme_new: Api
    beta: Api
    default: Api
    nobody: Api
    unkeyed: Api


@pytest.fixture(scope="module")
def keyed_url(live_system: Live) -> Iterator[str]:
    port = free_port()
    gateway = live_system.system.start("gateway", env={"HEIMDEX_API_KEYS": entries()}, port=port)
    servers.run_async(lambda: gateway.wait_log("ready"))
    yield f"http://127.0.0.1:{port}"
    gateway.kill()


@pytest_asyncio.fixture
async def callers(keyed_url: str, live: Live) -> AsyncIterator[Callers]:
    async with AsyncExitStack() as stack:
        with_keys = [await stack.enter_async_context(Api(keyed_url, key)) for key in KEYS.values()]
        without = [await stack.enter_async_context(Api(url)) for url in (keyed_url, live.system.url)]
        yield Callers(*with_keys, *without)


async def operations(api: Api) -> list[tuple[str, str]]:
    """Return every method and path of the document that is about jobs."""
    paths = (await api.http.get("/schema/openapi.json")).json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods if path not in OPEN]


async def ask(api: Api, method: str, path: str, job_id: str = "", **rest: Any) -> tuple[int, bytes, dict[str, str]]:
    """Send this request. Returns the status, body and headers of the response."""
    body = BODIES.get(path) if method == "POST" else None
    query = {"status": "failed"} if path == "/jobs/retry" else None
    response = await api.http.request(method, path.format(job_id=job_id), json=body, params=query, **rest)
    headers = {name: value for name, value in response.headers.items() if name != "date"}
    return response.status_code, response.content, headers


async def test_without_a_key_or_with_an_unknown_one_every_operation_on_jobs_is_401(callers: Callers) -> None:
    job_id = await callers.acme.submit()
    all_operations = await operations(callers.nobody)
    assert len(all_operations) >= 8
    for method, path in all_operations:
        for headers in ({}, {"Authorization": "Bearer unknown"}, {"Authorization": f"Basic {KEYS['acme']}"}):
            response = await callers.nobody.http.request(
                method, path.format(job_id=job_id), headers=headers, json=BODIES.get(path)
            )
            assert response.status_code == 401, (method, path)
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.headers["Content-Type"] == "application/json"
            assert list(response.json()) == ["detail"]
    assert (await callers.acme.get(job_id))["status"] == "pending"


async def test_routes_that_are_not_about_jobs_need_no_key(callers: Callers) -> None:
    paths = (
        "/healthz",
        "/readyz",
        "/schema",
        "/schema/swagger",
        "/schema/openapi.json",
        "/schema/assets/swagger-ui.css",
    )
    for path in paths:
        assert (await callers.nobody.http.get(path)).status_code == 200, path
    assert (await callers.nobody.http.options("/jobs")).status_code == 204
    assert (await callers.nobody.http.get("/schemata")).status_code == 404
    assert (await callers.nobody.http.put("/jobs")).status_code == 405


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "canceled", "later"])
async def test_on_every_route_another_tenants_job_is_like_one_that_does_not_exist(
    callers: Callers, live: Live, state: str
) -> None:
    acme = callers.acme
    if state == "processing":
        live.script.write("preparing", "gate")
    if state == "failed":
        live.script.write("preparing", "permanent")
    kind = "scripted" if state in {"processing", "completed", "failed"} else "mock_process"
    job_id = await acme.submit(kind, **({"delay_seconds": 3600} if state == "later" else {}))
    if state == "canceled":
        assert (await acme.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    status = "pending" if state == "later" else state
    await acme.wait_until(job_id, status)
    if state == "processing":
        await eventually(lambda: live.script.runs("preparing", job_id))
    before = await acme.get(job_id)
    routes = [(method, path) for method, path in await operations(acme) if "{job_id}" in path]
    assert len(routes) >= 4
    variants: list[tuple[str, str, dict[str, Any]]] = [
        *((method, path, {}) for method, path in routes),
        ("GET", "/jobs/{job_id}?wait=0.3", {}),
        ("GET", "/jobs/{job_id}/events", {"headers": {"Accept": "text/event-stream"}}),
        ("GET", "/jobs/{job_id}/events", {"headers": {"Accept": "text/event-stream", "Last-Event-ID": "0.0"}}),
        ("POST", "/jobs/{job_id}/retry?from=start", {}),
    ]
    for other in (callers.beta, callers.default, callers.unkeyed):
        for method, path, rest in variants:
            answer = await ask(other, method, path, job_id, **rest)
            assert answer == await ask(other, method, path, str(uuid.uuid4()), **rest), (method, path)
            assert (answer[0], answer[1]) == (404, b'{"detail":"Job not found"}')
    after = await acme.get(job_id)
    assert (after["status"], after["stage"]) == (before["status"], before["stage"])
    live.script.open_gate()
    if state == "processing":
        await acme.wait_until(job_id, "completed")


async def test_every_route_works_for_the_jobs_own_tenant(callers: Callers, live: Live) -> None:
    acme = callers.acme
    live.script.write("preparing", "permanent")
    job_id = await acme.submit("scripted")
    await acme.wait_until(job_id, "failed")
    live.script.write("preparing", "ok")
    assert (await acme.http.post(f"/jobs/{job_id}/retry")).json()["id"] == job_id
    response = await acme.http.get(f"/jobs/{job_id}", params={"wait": "30"})
    assert response.json()["status"] == "completed"
    kinds = [entry["event"] for entry in await history(acme, job_id)]
    assert kinds == ["submitted", "failed", "retried", "handed_over", "handed_over", "completed"]
    assert [sent.event for sent in await sse_entries(acme, job_id)] == kinds
    queued = await acme.submit()
    assert (await acme.http.post(f"/jobs/{queued}/cancel")).json()["status"] == "canceled"
    batch = await acme.http.post("/jobs/batch", json={"jobs": [{"type": "scripted"}] * 2})
    for one in batch.json()["job_ids"]:
        await acme.wait_until(one, "completed")


async def test_all_messages_of_a_job_have_its_tenant_and_the_default_tenant_is_omitted(
    callers: Callers, live: Live
) -> None:
    live.script.write("preparing", "raise", "ok")
    live.script.write("grinding", "permanent")
    async with Observer(live.nats.url) as seen:
        ids = {
            name: await api.submit("scripted") for name, api in (("beta", callers.beta), ("default", callers.unkeyed))
        }
        for api, job_id in zip((callers.beta, callers.unkeyed), ids.values(), strict=True):
            await api.wait_until(job_id, "failed")
            assert (await api.http.post(f"/jobs/{job_id}/retry")).status_code == 200
            await api.wait_until(job_id, "failed")
        for tenant, job_id in ids.items():
            payloads = [*seen.payloads("heimdex.jobs", job_id), *seen.payloads("heimdex.attempts", job_id)]
            payloads += seen.payloads("heimdex.progress", job_id)
            assert {"due", "failed"} <= {one.get("event") for one in payloads}
            assert any("delay_seconds" in one for one in payloads)
            assert {one.get("tenant") for one in payloads} == {None if tenant == "default" else tenant}
            rows = await fetch(
                live.system.env["HEIMDEX_DATABASE_URL"] or "",
                "SELECT tenant, message->>'tenant' AS stored FROM jobs WHERE id = $1::text::uuid",
                job_id,
            )
            assert rows == [{"tenant": tenant, "stored": None if tenant == "default" else tenant}]


async def listed(api: Api, **query: Any) -> list[str]:
    response = await api.http.get("/jobs", params={"limit": 1000, **query})
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["jobs"]]


async def alike(one: Api, other: Api, **query: Any) -> bool:
    return set(await listed(one, **query)) == set(await listed(other, **query))


async def test_a_list_has_the_tenants_own_jobs_whatever_the_filter_or_the_cursor(callers: Callers) -> None:
    mine = [await callers.acme.submit() for _ in range(3)]
    theirs = [await callers.beta.submit() for _ in range(3)]
    open_ones = [await callers.unkeyed.submit() for _ in range(2)]
    for api, own in ((callers.acme, mine), (callers.beta, theirs), (callers.unkeyed, open_ones)):
        await api.wait_until_listed(own)
    for query in ({}, {"status": "pending"}, {"type": "mock_process"}, {"created_after": "2020-01-01T00:00:00Z"}):
        seen = [set(await listed(api, **query)) for api in (callers.acme, callers.beta, callers.unkeyed)]
        for own, listed_ids in zip((mine, theirs, open_ones), seen, strict=True):
            assert set(own) <= listed_ids
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]
        for one, other in ((callers.unkeyed, callers.default), (callers.acme, callers.acme_new)):
            await eventually(lambda one=one, other=other, query=query: alike(one, other, **query))  # type: ignore[misc]
    # A cursor contains a position, not a tenant.
    cursor = (await callers.beta.http.get("/jobs", params={"limit": 1})).json()["next_cursor"]
    assert not set(theirs) & set(await listed(callers.acme, cursor=cursor))


async def test_a_retry_of_many_changes_no_job_of_another_tenant(callers: Callers, live: Live) -> None:
    live.script.write("preparing", "permanent")
    ids = [await api.submit("scripted") for api in (callers.acme, callers.beta, callers.unkeyed)]
    for api, job_id in zip((callers.acme, callers.beta, callers.unkeyed), ids, strict=True):
        await api.wait_until(job_id, "failed")
        await api.wait_until_listed([job_id], status="failed")
    live.script.write("preparing", "ok")
    response = await callers.beta.http.post("/jobs/retry", params={"status": "failed", "type": "scripted"})
    assert response.json()["retried"] >= 1
    await callers.beta.wait_until(ids[1], "completed")
    for api, job_id in ((callers.acme, ids[0]), (callers.unkeyed, ids[2])):
        assert [entry["event"] for entry in await history(api, job_id)] == ["submitted", "failed"]


async def test_two_tenants_may_use_the_same_idempotency_key_and_the_keys_of_one_tenant_share_it(
    callers: Callers,
) -> None:
    headers = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    one, other, same, unkeyed, default = await asyncio.gather(
        *(
            api.submit(headers=headers)
            for api in (callers.acme, callers.beta, callers.acme_new, callers.unkeyed, callers.default)
        )
    )
    assert one == same
    assert unkeyed == default
    assert len({one, other, unkeyed}) == 3
    changed = {"type": "mock_process", "fail_at_stage": "indexing"}
    answers = [await api.http.post("/jobs", json=changed, headers=headers) for api in (callers.acme_new, callers.beta)]
    assert [answer.status_code for answer in answers] == [422, 422]


async def test_both_keys_of_a_tenant_see_and_change_the_same_jobs(callers: Callers) -> None:
    job_id = await callers.acme.submit()
    assert (await callers.acme_new.get(job_id))["status"] == "pending"
    assert (await callers.acme_new.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await callers.acme.get(job_id))["status"] == "canceled"


async def test_a_key_of_the_default_tenant_sees_what_was_submitted_without_keys(callers: Callers) -> None:
    job_id = await callers.unkeyed.submit()
    assert (await callers.default.get(job_id))["id"] == job_id
    later = await callers.default.submit()
    assert (await callers.unkeyed.get(later))["id"] == later


async def test_a_live_stream_of_a_tenants_job_is_sent_to_the_tenants_key(callers: Callers, live: Live) -> None:
    live.script.write("grinding", "gate")
    job_id = await callers.acme.submit("scripted")
    stream = asyncio.create_task(sse_entries(callers.acme_new, job_id))
    await eventually(lambda: live.script.runs("grinding", job_id))
    live.script.open_gate()
    received = await asyncio.wait_for(stream, 40)
    assert [sent.event for sent in received] == ["submitted", "handed_over", "handed_over", "completed"]


async def test_a_401_to_a_large_body_does_not_break_the_connection(callers: Callers) -> None:
    async with httpx.AsyncClient(base_url=str(callers.nobody.http.base_url), trust_env=False) as client:
        for _ in range(3):
            response = await client.post("/jobs", content=b"x" * 900_000, headers={"Content-Type": "application/json"})
            assert response.status_code == 401
