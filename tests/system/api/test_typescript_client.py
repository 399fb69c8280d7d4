"""A TypeScript client generated from the OpenAPI document: it submits a typed job, and a wrong one does not compile."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.pipelines.parametrized import STAGES, Clips
from tests.support.services import System

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node and npm are not installed"),
]
PROGRAMS = Path(__file__).parent / "typescript"


async def run(folder: Path, *argv: str, codes: Sequence[int] = (0,)) -> str:
    """Run a command in this folder, which must exit with one of these codes. Returns its output."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1", "npm_config_update_notifier": "false"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode(errors="replace")
    except asyncio.CancelledError:
        process.kill()
        raise
    assert process.returncode in codes, output
    return output


async def test_a_generated_client_submits_a_typed_job_and_a_wrong_parameter_does_not_compile(
    system: System, api: Api, tmp_path: Path
) -> None:
    system.env |= Clips(tmp_path / "clips").env
    system.start_all()
    system.start_all(STAGES, without=("gateway", "status-store"))
    await system.ready()
    for name in ("package.json", "tsconfig.json", "client.ts", "wrong.ts"):
        shutil.copy(PROGRAMS / name, tmp_path)
    (tmp_path / "openapi.json").write_text((await api.http.get("/schema/openapi.json")).text)
    await run(tmp_path, "npm", "install", "--no-package-lock", "--no-audit", "--no-fund")
    tools = tmp_path / "node_modules" / ".bin"
    await run(tmp_path, str(tools / "openapi-typescript"), "openapi.json", "--output", "schema.ts")

    wrong = (PROGRAMS / "wrong.ts").read_text().splitlines()
    errors = await run(tmp_path, str(tools / "tsc"), "--project", ".", "--noEmit", codes=(1, 2))
    refused = {int(line) for line in re.findall(r"^wrong\.ts\((\d+),\d+\): error TS", errors, re.MULTILINE)}
    assert refused == {number for number, line in enumerate(wrong, 1) if line.startswith("await")}, errors
    assert "client.ts" not in errors, errors

    (tmp_path / "wrong.ts").unlink()
    await run(tmp_path, str(tools / "tsc"), "--project", ".")
    got = json.loads(await run(tmp_path, "node", "client.js", system.url))
    job = got["job"]
    assert (job["status"], job["params"]["language"], job["params"]["box"]) == (
        "completed",
        "de",
        {"width": 2, "height": 360},
    )
    assert job["outputs"] == {
        "cutting": {"pieces": 0, "of": "https://media.example/film.mp4"},
        "checking": None,
        "joining": {"joined": 0, "any": None},
    }
    assert job["result"]["output"] == job["outputs"]["joining"]
    assert len({got["plain"], *got["batch"]}) == 3
    assert got["types"] == ["clip", "mock_process", "quiet"]
    assert got["refused"] == [422, "params.source"]
