"""A failure explains itself: the history has the traceback or the lost attempt, the log has every line with its job.

`pytest -s` prints the history and the log of each failure; docs/pipelines.md shows them.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdex_cli.output.tables import print_events
from tests.support.api import Api
from tests.support.pipelines import failing, with_pipelines
from tests.support.pipelines.deployed import RUNS, declared
from tests.support.services import System
from tests.support.waiting import eventually
from tests.system.api.sse import entries, history
from tests.system.faults.test_worker_lost import supervised

pytestmark = pytest.mark.allows("errors")

STAGE = failing.STAGE


@pytest.fixture(autouse=True)
def failing_stages(system: System) -> Iterator[None]:
    """The job types of `failing`, with their own retry delays."""
    system.env |= {"HEIMDEX_RETRY_BACKOFF_SECONDS": "", "HEIMDEX_LOG_LEVEL": "info", **with_pipelines("failing")}
    yield
    for service in system.services:
        assert not service.logged("not_json")


async def failed(system: System, api: Api, job_type: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run a job of this type until it fails. Returns its history and the log entries that name it."""
    job_id = await api.submit(job_type)
    await api.wait_until(job_id, "failed")
    events = await history(api, job_id)
    assert [sent.data for sent in await entries(api, job_id)] == events
    logged = [entry for service in system.services for entry in service.logs if entry.get("job_id") == job_id]
    logged.sort(key=lambda entry: str(entry["timestamp"]))
    print(f"\n{job_type}:")
    print_events(events, tracebacks=True)  # type: ignore[arg-type]
    for entry in logged:
        print(json.dumps(entry))
    return events, logged


async def started(system: System) -> None:
    system.start_all(stages=(STAGE,))
    await system.ready()


@pytest.mark.parametrize("job_type", ["talkative", pytest.param("talkative_async", marks=pytest.mark.full)])
async def test_each_line_that_a_stage_or_its_child_writes_is_an_entry_of_its_attempt(
    system: System, api: Api, job_type: str
) -> None:
    await started(system)
    job_id = await api.submit(job_type)
    await api.wait_until(job_id, "completed")
    worker = system[STAGE]

    def outputs() -> dict[str, set[str]]:
        lines = worker.logged("stage_output", job_id=job_id, stage=STAGE, attempt=1)
        return {of: {line["message"] for line in lines if line["stream"] == of} for of in ("stdout", "stderr")}

    rubbish = {"\ufffd\x00 rubbish"}
    threads = {"a task's thread"} if job_type == "talkative_async" else set()
    expected = {"stdout": failing.SPOKEN["stdout"] | rubbish | threads, "stderr": failing.SPOKEN["stderr"]}
    await eventually(lambda: outputs() == expected, what=lambda: f"all is logged: {worker.stderr}")
    for event in ("logging", "logging in a thread"):
        assert worker.logged(event, job_id=job_id, stage=STAGE, attempt=1)
    assert [entry for entry in worker.logs if "a warning" in entry["event"] and entry.get("job_id") == job_id]


@pytest.mark.full
async def test_the_output_of_jobs_beside_each_other_goes_to_their_own_attempts(system: System, api: Api) -> None:
    await started(system)
    jobs = await asyncio.gather(*(api.submit("talkative") for _ in range(10)))
    for job_id in jobs:
        await api.wait_until(job_id, "completed")
    for job_id in jobs:
        lines = system[STAGE].logged("stage_output", job_id=job_id, attempt=1)
        assert {"a print", "two pieces", "a print to stderr"} <= {line["message"] for line in lines}


@pytest.mark.parametrize("job_type", ["caused", pytest.param("caused_async", marks=pytest.mark.full)])
async def test_an_error_leaves_its_traceback_with_cause_and_note(system: System, api: Api, job_type: str) -> None:
    await started(system)
    events, logged = await failed(system, api, job_type)
    assert [entry["event"] for entry in events] == ["submitted", "attempt_failed", "failed"]
    for entry in (*events[1:], *(line for line in logged if line["event"] == "attempt_failed")):
        assert "ValueError: the video has no frames" in entry["error"]
        for part in ("KeyError: 'frames'", "direct cause", "probe: /data/in.mkv", "in _count_frames"):
            assert part in entry["traceback"]


@pytest.mark.full
async def test_a_permanent_error_in_a_group_fails_the_job_at_once(system: System, api: Api) -> None:
    await started(system)
    events, _ = await failed(system, api, "grouped")
    assert [entry["event"] for entry in events] == ["submitted", "failed"]
    assert events[1]["error"] == f"The stage {STAGE} failed permanently on attempt 1: the file is not a video"
    assert "PermanentError: the file is not a video" in events[1]["traceback"]


@pytest.mark.full
async def test_a_stage_without_memory_fails_with_its_line(system: System, api: Api) -> None:
    await started(system)
    events, _ = await failed(system, api, "memory")
    assert "MemoryError" in events[-1]["error"]
    assert "in _exhaust_memory" in events[-1]["traceback"]


@pytest.mark.full
async def test_a_time_out_leaves_where_the_stage_was(system: System, api: Api) -> None:
    await started(system)
    events, _ = await failed(system, api, "slow")
    assert "time-out of 2 s" in events[-1]["error"]
    assert "in _decode_forever" in events[-1]["traceback"]


@pytest.mark.full
@pytest.mark.allows("repeated", "worker_lost", "isolated", "errors")
@pytest.mark.parametrize(("job_type", "signal"), [("killed", "SIGKILL"), ("crashed", "SIGABRT")])
async def test_a_lost_worker_leaves_each_lost_attempt_and_its_last_words(
    system: System, api: Api, job_type: str, signal: str
) -> None:
    system.start_all(stages=(STAGE,), without=(STAGE,))
    await system.ready()
    async with supervised(system, STAGE):
        events, logged = await failed(system, api, job_type)
    assert [(entry["id"], entry["event"]) for entry in events] == [
        ("0.0", "submitted"),
        ("0.1", "attempt_lost"),
        ("0.2", "attempt_lost"),
        ("1.0", "failed"),
    ]
    assert "worker lost" in events[-1]["error"]
    assert signal in events[-1]["error"]
    words = f"last words before {signal}"
    assert {line["attempt"] for line in logged if line.get("message") == words} == {1, 2, 3}
    if job_type == "crashed":
        stacks = [line for line in logged if line["event"] == "stage_output" and " in explain" in line["message"]]
        assert {line["attempt"] for line in stacks} == {1, 2, 3}


@pytest.mark.full
@pytest.mark.allows("refused", "topology", "errors")
async def test_a_type_that_no_worker_knows_is_named_in_both_logs_and_in_the_history(
    system: System, api: Api, scratch: Path
) -> None:
    known, newer = declared({"film": ("cut",)}), declared({"film": ("cut",), "song": ("cut",)})
    system.env |= {**known, RUNS: str(scratch / "runs"), "HEIMDEX_UNKNOWN_AFTER_SECONDS": "1"}
    system.start("gateway", env=newer)
    system.start("status-store")
    system.start("cut")
    await system.ready()
    events, logged = await failed(system, api, "song")
    assert [entry["event"] for entry in events] == ["submitted", "failed"]
    assert "no worker knows the job type 'song'" in events[-1]["error"]
    assert {entry["event"] for entry in logged} >= {"unknown_work", "jobs_refused", "unknown_job_failed"}
