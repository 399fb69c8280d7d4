"""Parameters and outputs are in every message after a loss of either store, byte for byte."""

import asyncio
from typing import Any

import msgspec
import pytest

from heimdex_contracts import messages, subjects
from heimdex_contracts.messages import Due, StageRun
from tests.support.histories import new_id
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.rows import execute, fetch
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

PARAMS = b'{"source":"https://example.com/\xc3\xa9", "size":1.50}'
OUTPUT = b'{"frames" : [1, 2.0], "text":"\\u00e9"}'


def waiting_job(job_type: str = "scripted") -> Due:
    """Return the message of a job whose first stage has returned OUTPUT, and that is due at the second one."""
    now = messages.now()
    return Due(
        job_id=new_id(),
        type=job_type,
        step=1,
        created_at=now,
        at=now,
        stage="grinding",
        reason="handed_over",
        started=True,
        route=STAGES,
        params=msgspec.Raw(PARAMS),
        finished=(StageRun("preparing", 1, now, now, 0.5, msgspec.Raw(OUTPUT)),),
    )


async def publish(seen: Observer, job: Due) -> None:
    await seen.nc.jetstream().publish(subjects.job_subject(job.stage, job.job_id), messages.encode(job))


async def has_row(url: str, job: Due) -> bool:
    return bool(await fetch(url, "SELECT FROM jobs WHERE id = $1::text::uuid", job.job_id))


async def completed(seen: Observer, url: str, job: Due) -> None:
    """Wait until the job is recorded as completed, and check each of its messages and its row."""

    async def is_over() -> list[dict[str, Any]]:
        return await fetch(
            url,
            "SELECT params::text, outputs::text, message FROM jobs WHERE id = $1::text::uuid AND status = 'completed'",
            job.job_id,
        )

    (row,) = await eventually(is_over)
    assert (row["params"].encode(), row["message"]) == (PARAMS, None)
    assert msgspec.json.decode(row["outputs"], type=dict[str, msgspec.Raw]) == {"preparing": msgspec.Raw(OUTPUT)}
    published = [messages.decode_job(each.subject, each.data) for each in seen.messages("heimdex.jobs", job.job_id)]
    assert len(published) > 2
    for message in published:
        assert (bytes(message.params), bytes(message.finished[0].output)) == (PARAMS, OUTPUT), message


@pytest.mark.allows("nats_killed", "restored")
async def test_a_job_restored_to_an_empty_jetstream_has_its_params_and_outputs(
    system: System, nats: Any, script: Script, database_url: str
) -> None:
    system.env |= script.env
    system.start_all(stages=STAGES, without=("grinding",))
    await system.ready()
    job = waiting_job()
    async with Observer(nats.url) as seen:
        await publish(seen, job)
        await eventually(lambda: has_row(database_url, job))
        await asyncio.to_thread(nats.kill)
        nats.wipe()
        await asyncio.to_thread(nats.start)
        await eventually(lambda: "restored" in [each.get("reason") for each in payloads(seen, job)])
        system.start("grinding")
        await completed(seen, database_url, job)


def payloads(seen: Observer, job: Due) -> list[dict[str, Any]]:
    return seen.payloads("heimdex.jobs", job.job_id)


async def test_an_emptied_database_gets_the_params_and_outputs_again(
    system: System, nats: Any, script: Script, database_url: str
) -> None:
    system.env |= script.env
    system.start_all(stages=STAGES, without=("grinding",))
    await system.ready()
    job = waiting_job()
    async with Observer(nats.url) as seen:
        await publish(seen, job)
        await eventually(lambda: has_row(database_url, job))
        await execute(database_url, "TRUNCATE jobs, job_events")
        await eventually(lambda: has_row(database_url, job))
        (row,) = await fetch(database_url, "SELECT params::text FROM jobs")
        assert row["params"].encode() == PARAMS
        system.start("grinding")
        await completed(seen, database_url, job)


@pytest.mark.allows("refused")
async def test_a_job_that_failed_because_no_worker_knew_it_keeps_params_and_outputs_for_a_retry(
    system: System, nats: Any, script: Script, database_url: str
) -> None:
    system.env |= {**script.env, "HEIMDEX_UNKNOWN_AFTER_SECONDS": "1"}
    system.start_all(stages=STAGES)
    await system.ready()
    job = waiting_job("unheard-of")
    async with Observer(nats.url) as seen:
        await publish(seen, job)
        await eventually(lambda: "failed" in seen.subjects("heimdex.jobs", job.job_id), timeout=60)
        (*_, last) = seen.messages("heimdex.jobs", job.job_id)
        failed = messages.decode_job(last.subject, last.data)
        assert (bytes(failed.params), bytes(failed.finished[0].output)) == (PARAMS, OUTPUT)
        query = "SELECT message::text, params::text FROM jobs WHERE status = 'failed'"
        (row,) = await eventually(lambda: fetch(database_url, query))
        assert row["params"].encode() == PARAMS
        assert bytes(messages.decode_stored(row["message"].encode()).finished[0].output) == OUTPUT
