"""API keys during outages, rate limits, and requests from a browser."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.keys import KEYS, entries
from tests.support.rows import fetch
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import System, clean_environment
from tests.support.waiting import eventually
from tests.support.watching import Observer

PAGE = "https://app.example.com"
#: So slow that no test gets another token by waiting.
RATE = "0.001,3"
LIMITS = {"ratelimit-limit", "ratelimit-policy", "ratelimit-remaining", "ratelimit-reset"}


@asynccontextmanager
async def gateway(system: System, **env: str) -> AsyncIterator[Api]:
    """Start only the system's gateway, with these settings. Yields a client without a key."""
    system.start("gateway", env=env)
    async with Api(system.url) as api:
        await eventually(api.is_up)
        yield api


def held(api: Api, holder: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[holder]}"}


async def test_a_gateway_without_keys_warns_and_one_with_keys_does_not_and_neither_logs_a_key(system: System) -> None:
    async with gateway(system):
        (warning,) = system["gateway"].logged("no_keys")
        assert (warning["level"], "HEIMDEX_API_KEYS" in warning["message"]) == ("warning", True)
        assert await system["gateway"].terminate() == 0
    async with gateway(system, HEIMDEX_API_KEYS=entries()) as api:
        for holder in KEYS:
            await api.http.get("/jobs", headers=held(api, holder))
        await api.http.get("/jobs", headers={"Authorization": "Bearer not-a-key-of-ours"})
        assert await system["gateway"].terminate() == 0
    log = system["gateway"].stderr
    assert "no_keys" not in log
    for secret in (*KEYS.values(), *(entry.split(":")[1] for entry in entries().split(",")), "not-a-key-of-ours"):
        assert secret not in log


async def test_while_postgres_is_down_a_job_is_returned_from_the_stream_to_its_own_tenant_only(
    new_system: NewSystem, nats: NatsServer, own_postgres: PostgresServer
) -> None:
    system = new_system(nats.url, own_postgres.url, HEIMDEX_API_KEYS=entries())
    system.start_all(stages=())
    await system.ready()
    own_postgres.stop()
    async with Api(system.url, KEYS["acme"]) as acme, Api(system.url, KEYS["beta"]) as beta:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        job_id = await acme.submit(headers=key)
        assert (await acme.get(job_id))["status"] == "pending"
        assert await acme.submit(headers=key) == job_id
        assert await beta.submit(headers=key) != job_id
        for method, path in (("GET", "/jobs/{}"), ("GET", "/jobs/{}/events"), ("POST", "/jobs/{}/cancel")):
            answers = [await beta.http.request(method, path.format(one)) for one in (job_id, uuid.uuid4())]
            assert answers[0].status_code == answers[1].status_code == 500
            assert answers[0].content == answers[1].content
        assert (await acme.get(job_id))["status"] == "pending"
        own_postgres.start()

        async def rows() -> list[str]:
            query = "SELECT tenant FROM jobs WHERE id = $1::text::uuid"
            return [row["tenant"] for row in await fetch(own_postgres.url, query, job_id)]

        assert await eventually(rows) == ["acme"]
        assert (await beta.http.get(f"/jobs/{job_id}")).status_code == 404
        assert (await acme.get(job_id))["status"] == "pending"


@pytest.mark.allows("topology", "restored")
async def test_a_job_that_is_restored_after_nats_lost_its_disk_keeps_its_tenant(
    system: System, nats: NatsServer, database_url: str
) -> None:
    system.env["HEIMDEX_API_KEYS"] = entries()
    system.start_all(stages=())
    await system.ready()
    async with Api(system.url, KEYS["acme"]) as acme, Api(system.url, KEYS["beta"]) as beta:
        job_id = await acme.submit()
        await eventually(lambda: fetch(database_url, "SELECT FROM jobs WHERE id = $1::text::uuid", job_id))
        nats.stop()
        nats.wipe()
        nats.start()
        await system["status-store"].wait_log("job_restored", job_id=job_id)
        async with Observer(nats.url) as seen:
            for stage in ("extracting", "analyzing", "indexing"):
                system.start(stage)
            await acme.wait_until(job_id, "completed")
            payloads = seen.payloads("heimdex.jobs", job_id)
            assert {one["tenant"] for one in payloads} == {"acme"}
        assert (await beta.http.get(f"/jobs/{job_id}")).status_code == 404


async def test_a_replaced_key_is_refused_after_a_restart_and_the_new_key_sees_the_same_jobs(
    system: System,
) -> None:
    async def answers(api: Api) -> list[int]:
        holders = ("acme", "acme-new")
        return [(await api.http.get("/jobs/x", headers=held(api, holder))).status_code for holder in holders]

    for holders, expected in (
        (("acme",), [404, 401]),
        (("acme", "acme-new"), [404, 404]),
        (("acme-new",), [401, 404]),
    ):
        async with gateway(system, HEIMDEX_API_KEYS=entries(*holders)) as api:
            assert await answers(api) == expected
            assert await system["gateway"].terminate() == 0


async def test_a_key_over_its_limit_is_429_with_retry_after_and_other_keys_are_not(system: System) -> None:
    async with gateway(system, HEIMDEX_API_KEYS=entries(), HEIMDEX_RATE_LIMIT=RATE) as api:
        for _ in range(10):
            refused = await api.http.get("/jobs/x")
            assert refused.status_code == 401
            assert not LIMITS & set(refused.headers)
        acme = held(api, "acme")
        for path, left in (("/jobs/x", "2"), ("/jobs?limit=0", "1"), ("/jobs/x", "0")):
            response = await api.http.get(path, headers=acme)
            assert response.status_code in {404, 422}
            assert response.headers["RateLimit-Remaining"] == left
            assert response.headers["RateLimit-Limit"] == "3"
            assert set(response.headers) >= LIMITS
        for method, path in (("GET", "/jobs/x"), ("POST", "/jobs"), ("GET", "/jobs"), ("POST", "/jobs/x/cancel")):
            response = await api.http.request(method, path, headers=acme)
            assert response.status_code == 429
            assert int(response.headers["Retry-After"]) > 0
            assert response.headers["RateLimit-Remaining"] == "0"
            assert set(response.headers) >= LIMITS
            assert list(response.json()) == ["detail"]
            assert response.headers["Retry-After"] in response.json()["detail"]
        assert (await api.http.get("/jobs/x", headers=held(api, "acme-new"))).status_code == 404
        for path in ("/healthz", "/schema/openapi.json"):
            response = await api.http.get(path, headers=acme)
            assert response.status_code == 200
            assert not LIMITS & set(response.headers)


async def test_without_keys_all_callers_share_one_limit(system: System) -> None:
    async with gateway(system, HEIMDEX_RATE_LIMIT=RATE) as api, Api(system.url, "any") as other:
        codes = [(await one.http.get("/jobs/x")).status_code for one in (api, other, api, other, api)]
        assert codes == [404, 404, 404, 429, 429]


async def test_responses_have_rate_limit_headers_only_if_there_is_a_limit(system: System) -> None:
    async with gateway(system, HEIMDEX_API_KEYS=entries()) as api:
        response = await api.http.get("/jobs/x", headers=held(api, "acme") | {"Origin": PAGE})
        assert response.status_code == 404
        assert not LIMITS & set(response.headers)
        assert not [name for name in response.headers if name.startswith("access-control")]
        # Without CORS, an answer to a preflight allows nothing.
        preflight = await api.http.options("/jobs", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
        assert not [name for name in preflight.headers if name.startswith("access-control")]


async def preflight(api: Api, path: str, origin: str, method: str = "POST", headers: str = "") -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return await api.http.options(
        path, headers=asked | ({"Access-Control-Request-Headers": headers} if headers else {})
    )


@pytest.mark.parametrize("path", ["/jobs", "/jobs/batch", "/jobs/some-id", "/jobs/some-id/cancel"])
async def test_a_page_of_an_allowed_origin_may_send_a_key_and_read_the_response_headers(
    system: System, path: str
) -> None:
    settings = {
        "HEIMDEX_API_KEYS": entries(),
        "HEIMDEX_RATE_LIMIT": RATE,
        "HEIMDEX_CORS_ORIGINS": f"https://b.io, {PAGE}",
    }
    async with gateway(system, **settings) as api:
        for _ in range(5):  # nobody's, so no key's limit
            allowed = await preflight(api, path, PAGE, headers="authorization, content-type, idempotency-key")
            assert allowed.status_code == 204
            assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
            assert "authorization" in allowed.headers["Access-Control-Allow-Headers"]
            assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
        codes = set()
        for headers in ({}, held(api, "acme"), held(api, "acme"), held(api, "acme"), held(api, "acme")):
            response = await api.http.put(path, headers=headers | {"Origin": PAGE})
            answers = [response, await api.http.get("/jobs?limit=0", headers=headers | {"Origin": PAGE})]
            for answer in answers:
                codes.add(answer.status_code)
                assert answer.headers["Access-Control-Allow-Origin"] == PAGE
                assert answer.headers["Vary"] == "Origin"
                exposed = answer.headers["Access-Control-Expose-Headers"]
                assert all(name in exposed for name in ("Location", "Retry-After", "RateLimit-Remaining"))
                assert "detail" in answer.json()
        assert codes == {401, 405, 422, 429}


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        ("https://evil.example.com", "POST", ""),
        (f"{PAGE}.evil.com", "POST", ""),
        (f"{PAGE}:8443", "POST", ""),
        ("http://app.example.com", "POST", ""),
        ("null", "POST", ""),
        (PAGE, "DELETE", ""),
        (PAGE, "POST", "x-mine"),
    ],
)
async def test_a_refused_preflight_is_json_that_lists_what_is_allowed(
    system: System, origin: str, method: str, headers: str
) -> None:
    async with gateway(system, HEIMDEX_CORS_ORIGINS=PAGE) as api:
        refused = await preflight(api, "/jobs", origin, method, headers)
        assert refused.status_code == 400
        assert refused.headers["Content-Type"] == "application/json"
        assert "Access-Control-Allow-Origin" not in refused.headers
        detail = refused.json()["detail"]
        assert all(word in detail for word in ("HEIMDEX_CORS_ORIGINS", "GET, POST", "Authorization"))
        if origin != PAGE:
            answer = await api.http.get("/jobs/x", headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_with_a_star_any_origin_is_allowed(system: System) -> None:
    async with gateway(system, HEIMDEX_CORS_ORIGINS="*") as api:
        assert (await preflight(api, "/jobs", "https://any.where")).headers["Access-Control-Allow-Origin"] == "*"
        for path in ("/jobs/x", "/healthz", "/nowhere"):
            answer = await api.http.get(path, headers={"Origin": "https://any.where"})
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_the_command_line_sends_its_key_and_reports_a_missing_one(system: System) -> None:
    def heimdex(*words: str, key: str = "") -> subprocess.CompletedProcess[str]:
        env = clean_environment() | {"HEIMDEX_URL": system.url, "HEIMDEX_API_KEY": key}
        command = str(Path(sys.executable).parent / "heimdex")
        return subprocess.run([command, *words], env=env, capture_output=True, text=True, timeout=60, check=False)

    async with gateway(system, HEIMDEX_API_KEYS=entries("acme")):
        system.start("status-store")
        await system.ready()
        done = await asyncio.to_thread(heimdex, "submit", key=KEYS["acme"])
        assert (done.returncode, done.stderr) == (0, "")
        refused = await asyncio.to_thread(heimdex, "get", done.stdout.strip())
        assert refused.returncode == 2
        assert "Missing API key" in refused.stderr
        assert "HEIMDEX_API_KEY" in refused.stderr
        refused = await asyncio.to_thread(heimdex, "get", done.stdout.strip(), key=KEYS["beta"])
        assert refused.returncode == 2
        assert "not known" in refused.stderr
