"""The OpenAPI document against the running gateway: schemathesis passes, and a generated client works."""

import asyncio
import importlib
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.keys import KEYS, entries
from tests.support.pipelines import with_pipelines
from tests.support.receiver import SECRET
from tests.support.services import ROOT, System
from tests.support.waiting import eventually

#: Of schemathesis, for each operation and phase. The whole takes about half a minute.
EXAMPLES = 10
CONFIG = Path(__file__).parent / "contract" / "schemathesis.toml"


#: With everything enabled that the document describes.
CALLBACKS: dict[str, str | None] = {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.1"}


@pytest.fixture
async def served(system: System) -> System:
    system.env |= CALLBACKS | with_pipelines("parametrized")
    system.start_all()
    await system.ready()
    return system


async def run(folder: Path, *argv: str) -> str:
    """Run a command in this folder, which must succeed. Returns its output."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode(errors="replace")
    except asyncio.CancelledError:
        process.kill()
        raise
    assert process.returncode == 0, output
    return output


async def document(api: Api) -> dict[str, Any]:
    response = await api.http.get("/schema/openapi.json")
    assert response.status_code == 200
    openapi: dict[str, Any] = response.json()
    return openapi


@pytest.mark.timeout(300)
@pytest.mark.parametrize("doors", ["plain", pytest.param("keyed", marks=pytest.mark.full)])
async def test_schemathesis_passes_with_all_checks_and_links(
    system: System, api: Api, tmp_path: Path, doors: str
) -> None:
    system.env |= CALLBACKS | with_pipelines("parametrized")
    if doors == "keyed":
        # Its key is in schemathesis.toml. The limit is high: it only adds its headers to every response.
        system.env |= {"HEIMDEX_API_KEYS": entries("acme"), "HEIMDEX_RATE_LIMIT": "100000"}
        system.env["HEIMDEX_CORS_ORIGINS"] = "https://app.example.com"
        system.env |= {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.1"}
    system.start_all()
    await system.ready()
    output = await run(
        tmp_path,
        str(Path(sys.executable).parent / "st"),
        "--config-file",
        str(CONFIG),
        "run",
        f"{system.url}/schema/openapi.json",
        "--checks=all",
        "--phases=examples,coverage,fuzzing,stateful",
        f"--max-examples={EXAMPLES}",
        "--request-timeout=20",
        "--seed=1",
        "--output-truncate=false",
    )
    assert "No issues found" in output, output
    async with Api(system.url, KEYS["acme"] if doors == "keyed" else "") as caller:
        assert (await caller.http.get("/jobs")).json()["jobs"], "it was let in"


async def test_the_document_links_each_response_with_a_job_to_the_operations_on_it(served: System, api: Api) -> None:
    paths = (await document(api))["paths"]
    for method, path, status in (
        ("post", "/jobs", "202"),
        ("post", "/jobs/{job_id}/cancel", "200"),
        ("post", "/jobs/{job_id}/retry", "200"),
    ):
        links = paths[path][method]["responses"][status]["links"]
        assert {link["operationId"] for link in links.values()} == {
            "getJob",
            "listJobEvents",
            "cancelJob",
            "retryJob",
        }


async def test_every_response_of_every_operation_has_an_example_that_matches_its_schema(
    served: System, api: Api
) -> None:
    openapi = await document(api)
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            assert "500" in operation["responses"] or not path.startswith("/jobs"), f"{method} {path}"
            for status, answer in operation["responses"].items():
                media = answer["content"]["application/json"]
                assert media.get("examples"), f"{method} {path} {status}"
                name = media["schema"]["$ref"].removeprefix("#/components/schemas/")
                shape = openapi["components"]["schemas"][name]
                for example in media["examples"].values():
                    assert set(shape["required"]) <= set(example["value"]) <= set(shape["properties"])


async def test_cancel_and_retry_each_have_their_own_example_of_a_conflict(served: System, api: Api) -> None:
    paths = (await document(api))["paths"]
    for change, words in (("cancel", "can be canceled"), ("retry", "can be retried")):
        answer = paths[f"/jobs/{{job_id}}/{change}"]["post"]["responses"]["409"]
        assert words in answer["content"]["application/json"]["examples"]["error"]["value"]["detail"]


async def test_the_document_describes_what_is_sent_to_a_callback_url(served: System, api: Api) -> None:
    openapi = await document(api)
    submit = openapi["paths"]["/jobs"]["post"]
    (operation,) = [path["post"] for path in submit["callbacks"]["jobEnded"].values()]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobObject")
    headers = [parameter["name"] for parameter in operation["parameters"]]
    assert headers == ["webhook-id", "webhook-timestamp", "webhook-signature"]
    assert "callback_url" in openapi["components"]["schemas"]["MockProcessJobRequest"]["properties"]
    examples = submit["requestBody"]["content"]["application/json"]["examples"]
    assert any("callback_url" in example["value"] for example in examples.values())


async def test_a_client_generated_from_the_document_can_call_every_operation(
    served: System, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(await document(api)))
    # Without its formatting of what it wrote.
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    package = tmp_path / "generated_heimdex_client"
    words = "generate --path openapi.json --meta none --config config.yml --fail-on-warning --output-path"
    generator = str(Path(sys.executable).parent / "openapi-python-client")
    await run(tmp_path, generator, *words.split(), str(package))
    monkeypatch.syspath_prepend(tmp_path)

    def module(name: str) -> Any:
        return importlib.import_module(f"{package.name}.{name}")

    models = module("models")
    async with module("client").Client(base_url=served.url, timeout=60) as client:
        request = models.MockProcessJobRequest(type_=models.MockProcessJobRequestType.MOCK_PROCESS)
        accepted = await module("api.jobs.submit_job").asyncio(client=client, body=request)
        assert isinstance(accepted, models.JobAccepted)
        job = await module("api.jobs.get_job").asyncio(accepted.job_id, client=client, wait=30)
        assert isinstance(job, models.JobObject)
        assert (job.id, job.status, job.progress) == (accepted.job_id, models.JobObjectStatus.COMPLETED, 100)
        history = await module("api.jobs.list_job_events").asyncio(accepted.job_id, client=client)
        assert [event.event for event in history.events][-1] == "completed"
        refused = await module("api.jobs.cancel_job").asyncio(accepted.job_id, client=client)
        assert isinstance(refused, models.ErrorBody)
        assert "completed" in refused.detail
        later = models.MockProcessJobRequest(type_=models.MockProcessJobRequestType.MOCK_PROCESS, delay_seconds=600)
        batch = models.BatchRequest(jobs=[later, later])
        many = await module("api.jobs.submit_jobs").asyncio(client=client, body=batch)
        assert isinstance(many, models.JobsAccepted)
        for job_id in many.job_ids:
            canceled = await module("api.jobs.cancel_job").asyncio(job_id, client=client)
            assert (canceled.id, canceled.status) == (job_id, models.JobObjectStatus.CANCELED)
        listed = module("api.jobs.list_jobs").asyncio
        status = models.ListJobsStatus.CANCELED
        page = await listed(client=client, status=status, limit=1)
        rest = await listed(client=client, status=status, cursor=page.next_cursor)
        assert [job.id for job in (*page.jobs, *rest.jobs)] == many.job_ids[::-1]
        again = await module("api.jobs.retry_job").asyncio(many.job_ids[0], client=client)
        assert again.id == many.job_ids[0]
        assert again.status != models.JobObjectStatus.CANCELED
        others = models.RetryJobsStatus.CANCELED
        retried = await module("api.jobs.retry_jobs").asyncio(client=client, status=others)
        assert (retried.retried, retried.more) == (1, False)
        for job_id in many.job_ids:
            job = await module("api.jobs.get_job").asyncio(job_id, client=client, wait=30)
            assert job.status == models.JobObjectStatus.COMPLETED
        clip = models.ClipJobRequest(
            type_=models.ClipJobRequestType.CLIP,
            params=models.ClipParams(source="a", box=models.ClipBox(width=2)),
            fail_at_stage=models.ClipJobRequestFailAtStageType0.CUTTING,
            delay_seconds=600,
        )
        accepted = await module("api.jobs.submit_job").asyncio(client=client, body=clip)
        job = await module("api.jobs.get_job").asyncio(accepted.job_id, client=client, include="params,outputs")
        assert job.params.to_dict()["box"] == {"width": 2, "height": 360}
        assert job.outputs.to_dict() == {}
        types = await module("api.jobs.list_job_types").asyncio(client=client)
        assert [entry.type_ for entry in types.job_types] == ["clip", "mock_process", "quiet"]
        nothing = await module("api.jobs.get_job").asyncio(str(uuid.uuid4()), client=client)
        assert nothing.detail == "Job not found"


async def test_the_document_describes_keys_and_limits_and_where_a_key_is_required(system: System) -> None:
    for keys in ("", entries("acme")):
        system.start("gateway", env={"HEIMDEX_API_KEYS": keys})
        async with Api(system.url) as api:
            await eventually(api.is_up)
            openapi = await document(api)
        assert openapi["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        assert openapi.get("security") == ([{"key": []}] if keys else None)
        for path, operations in openapi["paths"].items():
            for operation in operations.values():
                assert ({"401", "429"} <= set(operation["responses"])) == path.startswith("/job")
                assert operation.get("security") == (None if path.startswith("/job") else [])
        assert await system["gateway"].terminate() == 0
