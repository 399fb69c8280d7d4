"""Every answer of the HTTP API that is an error, and the two health checks."""

import asyncio
import json
import uuid
from typing import Any

import httpx
import pytest

from tests.support.api import Api
from tests.support.services import System

JSON = {"content-type": "application/json"}


def detail(response: httpx.Response, status: int) -> str:
    """Return the sentence of this error response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert isinstance(body, dict)
    assert isinstance(body["detail"], str)
    assert body["detail"]
    return str(body["detail"])


async def test_healthz_returns_the_service_version_and_environment(shared_api: Api) -> None:
    response = await shared_api.http.get("/healthz")
    body = response.json()
    assert response.status_code == 200
    assert list(body) == ["ok", "service", "version", "env", "started_at"]
    assert (body["ok"], body["service"], body["version"], body["env"]) == (True, "heimdex-api", "0.1.0", "local")
    assert len(body["started_at"]) == len("2025-10-28T12:00:00.000000Z")


async def test_readyz_is_200_and_names_each_dependency_when_all_is_up(shared_api: Api) -> None:
    response = await shared_api.http.get("/readyz")
    assert response.status_code == 200
    assert response.json()["nats"]["ok"]
    assert response.json()["postgres"]["ok"]


async def test_an_accepted_job_is_202_with_its_id_and_its_location(shared_api: Api) -> None:
    response = await shared_api.http.post("/jobs", json={"type": "mock_process", "fail_at_stage": None})
    assert response.status_code == 202
    job_id = response.json()["job_id"]
    assert str(uuid.UUID(job_id)) == job_id
    assert response.headers["location"] == f"/jobs/{job_id}"
    assert (await shared_api.http.get(response.headers["location"])).status_code == 200


@pytest.mark.parametrize(
    "job_id",
    [
        "00000000-0000-4000-8000-000000000000",
        "not-a-uuid",
        "1",
        "x" * 3000,
        "00000000000040008000000000000000",
        "%00",
        "%FF%FE",
        "*",
        "%3E",
        "a.b",
        "é",
        "00000000-0000-4000-8000-00000000000%0a",
    ],
)
async def test_an_unknown_or_malformed_id_is_404_job_not_found(shared_api: Api, job_id: str) -> None:
    response = await shared_api.http.get(f"/jobs/{job_id}")
    assert response.status_code == 404
    assert response.json() == {"detail": "Job not found"}


async def test_an_id_in_capital_letters_is_the_same_job(shared_api: Api) -> None:
    job_id = await shared_api.submit()
    assert (await shared_api.get(job_id.upper()))["id"] == job_id


@pytest.mark.parametrize("body", [b"", b"{", b"{'type': 1}", b"\xff\xfe", b"[" * 100_000, b'{"type": "mock_process"'])
async def test_malformed_json_is_400(shared_api: Api, body: bytes) -> None:
    detail(await shared_api.http.post("/jobs", content=body, headers=JSON), 400)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, ["type", "mock_process"]),
        ({"type": "unheard_of"}, ["type", "mock_process"]),
        ({"type": 7}, ["type", "mock_process"]),
        ({"type": None}, ["type", "mock_process"]),
        (
            {"type": "mock_process", "fail_at_stage": "painting"},
            ["fail_at_stage", "extracting", "analyzing", "indexing"],
        ),
        ({"type": "mock_process", "fail_at_stage": 7}, ["fail_at_stage", "analyzing"]),
        ({"type": "mock_process", "colour": "red"}, ["colour"]),
        ([], ["object"]),
        (None, ["object"]),
        ("mock_process", ["object"]),
    ],
)
async def test_json_that_is_not_a_job_is_422_naming_the_field_and_what_is_allowed(
    shared_api: Api, body: Any, names: list[str]
) -> None:
    response = await shared_api.http.post("/jobs", content=json.dumps(body).encode(), headers=JSON)
    text = detail(response, 422)
    for name in names:
        assert name in text


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 3 * 1024 * 1024])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_one_mebibyte_is_413(shared_api: Api, size: int, chunked: bool) -> None:
    body = b'{"type": "mock_process"}'.ljust(size)

    async def chunks() -> Any:
        for start in range(0, size, 64 * 1024):
            yield body[start : start + 64 * 1024]

    response = await shared_api.http.post("/jobs", content=chunks() if chunked else body, headers=JSON)
    detail(response, 413)


async def test_a_body_of_exactly_one_mebibyte_is_accepted(shared_api: Api) -> None:
    body = b'{"type": "mock_process"}'.ljust(1024 * 1024)
    assert (await shared_api.http.post("/jobs", content=body, headers=JSON)).status_code == 202


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json", "é"],
)
async def test_a_body_without_the_content_type_of_json_is_415(shared_api: Api, content_type: str) -> None:
    headers = {"content-type": content_type.encode()}
    response = await shared_api.http.post("/jobs", content=b'{"type": "mock_process"}', headers=headers)
    detail(response, 415)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_the_content_type_of_json_is_accepted_in_every_valid_form(shared_api: Api, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = await shared_api.http.post("/jobs", content=b'{"type": "mock_process"}', headers=headers)
    assert response.status_code == 202


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/jobs/a/b/c", "/healthz/x", "/%00", "/schema/nope", "/schema/a/b", "/schema/assets/nope"]
)
async def test_an_unknown_path_is_404_with_a_detail(shared_api: Api, path: str) -> None:
    assert "nothing at /" in detail(await shared_api.http.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/jobs"),
        ("DELETE", "/jobs"),
        ("POST", "/healthz"),
        ("PATCH", "/jobs/some-id"),
        ("POST", "/jobs/some-id"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_405_with_the_allowed_methods(
    shared_api: Api, method: str, path: str
) -> None:
    response = await shared_api.http.request(method, path)
    detail(response, 405)
    assert response.headers["allow"]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: -1\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_bytes_that_are_not_http_do_not_affect_the_next_caller(
    shared_system: System, shared_api: Api, raw: bytes
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", shared_system.port)
    writer.write(raw)
    await writer.drain()
    writer.close()
    assert await shared_api.is_up()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"FOO /jobs HTTP/1.1\r\n\r\n", 400),
        (b"GET /jobs/\xff\xfe HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nx: " + b"x" * 40_000, 431),
    ],
)
async def test_bytes_that_are_not_a_request_are_answered_in_json_too(
    shared_system: System, raw: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", shared_system.port)
    writer.write(raw)
    head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/json" in head
    assert json.loads(body)["detail"]


async def test_a_job_with_a_malformed_traceparent_is_accepted(shared_api: Api) -> None:
    for value in ("garbage", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "x" * 5000):
        await shared_api.submit(headers={"traceparent": value})
