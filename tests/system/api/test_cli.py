"""The command `heimdex` against the real system."""

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.support.api import Api
from tests.support.pipelines import parametrized
from tests.support.pipelines.parametrized import Clips
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.services import System
from tests.support.waiting import eventually
from tests.system.api.conftest import Live

HEIMDEX = str(Path(sys.executable).parent / "heimdex")


async def start(url: str, *words: str) -> asyncio.subprocess.Process:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEIMDEX_")}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        HEIMDEX, *words, env=env | {"HEIMDEX_URL": url}, stdout=pipe, stderr=pipe
    )


async def heimdex(url: str, *words: str, code: int = 0) -> str:
    """Run `heimdex`, which must exit with this code. Returns its standard output."""
    process = await start(url, *words)
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    return out.decode()


async def test_a_job_is_submitted_watched_and_listed_and_its_events_are_printed(live: Live, http: Api) -> None:
    url = live.system.url
    job = json.loads(await heimdex(url, "submit", "--type", "scripted", "--watch", "--json"))
    assert (job["status"], job["progress"]) == ("completed", 100)
    assert json.loads(await heimdex(url, "get", job["id"], "--json")) == job
    await http.wait_until_listed([job["id"]], status="completed")
    newest = (await heimdex(url, "list", "--type", "scripted", "--status", "completed", "--limit", "1")).splitlines()
    assert newest[1].startswith(job["id"])
    events = [json.loads(line) for line in (await heimdex(url, "events", job["id"], "--json")).splitlines()]
    assert [entry["event"] for entry in events] == ["submitted", "handed_over", "handed_over", "completed"]
    assert "handed_over" in await heimdex(url, "events", job["id"])


async def test_the_exit_code_is_that_of_the_terminal_state_and_a_failed_job_is_retried(live: Live) -> None:
    url = live.system.url
    live.script.write("grinding", "permanent")
    out = await heimdex(url, "submit", "--type", "scripted", "--fail-at", "grinding", "--watch", code=1)
    assert "The job failed: " in out
    job_id = (await heimdex(url, "submit", "--type", "scripted")).strip()
    assert "the script says for good" in await heimdex(url, "watch", job_id, code=1)
    live.script.write("grinding", "ok")
    assert "The job completed" in await heimdex(url, "retry", job_id, "--watch")
    assert len(live.script.runs("preparing", job_id)) == 1
    await heimdex(url, "retry", job_id, code=2)


async def test_a_canceled_job_is_exit_code_3(live: Live, http: Api) -> None:
    url = live.system.url
    job_id = (await heimdex(url, "submit")).strip()
    watching = await start(url, "watch", job_id)
    assert await heimdex(url, "cancel", job_id) == "The job is canceled.\n"
    out, _ = await watching.communicate()
    assert (watching.returncode, out.decode().splitlines()[-1]) == (3, "The job was canceled.")
    await heimdex(url, "cancel", job_id, code=2)
    assert json.loads(await heimdex(url, "retry", job_id, "--from-start", "--json"))["status"] == "pending"
    assert json.loads(await heimdex(url, "cancel", job_id, "--json"))["status"] == "canceled"


async def test_watch_continues_across_a_restart_of_the_gateway(scripted: System, api: Api, script: Script) -> None:
    script.write("grinding", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = (await heimdex(scripted.url, "submit", "--type", "scripted")).strip()
    watching = await start(scripted.url, "watch", job_id)
    await eventually(lambda: script.runs("grinding", job_id))
    assert watching.stdout is not None
    while b"grinding" not in await watching.stdout.readline():
        assert not watching.stdout.at_eof()
    scripted["gateway"].kill()
    await scripted.start("gateway").wait_log("ready")
    script.open_gate()
    out, err = await watching.communicate()
    assert watching.returncode == 0, (out, err)
    assert out.decode().splitlines()[-1].startswith("The job completed in ")


async def test_a_job_with_parameters_is_submitted_and_its_outputs_are_shown(system: System, tmp_path: Path) -> None:
    system.env |= Clips(tmp_path / "clips").env
    system.start_all(parametrized.STAGES)
    await system.ready()
    types = [json.loads(line) for line in (await heimdex(system.url, "types", "--json")).splitlines()]
    assert [entry["type"] for entry in types] == ["clip", "mock_process", "quiet"]
    assert "source=string [language=auto|de|en] [box=object]" in await heimdex(system.url, "types")
    file = tmp_path / "params.json"
    file.write_text('{"source": "é", "tags": ["a"], "language": "en"}')
    words = ("--param", "box.width=2", "--param", "language=de", "--param", 'tags=["a","b"]', "--param", "any=7")
    job_id = (await heimdex(system.url, "submit", "--type", "clip", "--params", f"@{file}", *words)).strip()
    await heimdex(system.url, "watch", job_id)
    job = json.loads(await heimdex(system.url, "get", job_id, "--include", "params,outputs", "--json"))
    assert job["params"] == {
        "source": "é",
        "language": "de",
        "box": {"width": 2, "height": 360},
        "tags": ["a", "b"],
        "threshold": 0.5,
        "any": "7",
    }
    assert job["outputs"] == {"cutting": {"pieces": 2, "of": "é"}, "checking": None, "joining": job["result"]["output"]}
    assert '"of": "é"' in await heimdex(system.url, "list", "--include", "outputs")
    process = await start(system.url, "submit", "--type", "clip", "--param", "source=a", "--param", "box.width=5000")
    _, err = await process.communicate()
    assert process.returncode == 2
    assert err.decode().startswith("heimdex: The field 'params.box.width' must be an integer from 1 to 4096, not 5000.")
    assert (
        "must be an integer, not 'a'"
        in (await (await start(system.url, "submit", "--type", "clip", "--param", "box.width=a")).communicate())[
            1
        ].decode()
    )
    process = await start(system.url, "get", job_id, "--include", "secrets")
    assert b"422 from" in (await process.communicate())[1]
