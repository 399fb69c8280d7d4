"""Parameters and outputs from a real Postgres: of one state with the job, only when asked for; a page has an end."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec
import pytest

from heimdex_contracts import messages
from heimdex_contracts.job_object import job_object
from heimdex_contracts.messages import AnyJobMessage, Due, StageRun
from heimdex_gateway.jobs.repository import MAX_PAGE_BYTES, Cursor, Database, JobQuery
from heimdex_gateway.schemas import job_list

START = datetime(2025, 10, 28, 12, tzinfo=UTC)
PARAMS = b'{"source":"\xc3\xa9","n":1.50, "a":[ 1 ]}'
BOTH = ("params", "outputs")
KIB = 1024

INSERT = """
INSERT INTO jobs (id, type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at, tenant,
                  message, params, outputs)
VALUES ($1::text::uuid, 'clip', $2, $3, 0, CASE $4 WHEN 'completed' THEN 100 ELSE 0 END, $4, $5, $6,
        CASE $4 WHEN 'failed' THEN 'oh' END, $7, $7, $8, $9, $10, $11)
"""


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


async def insert(
    connection: asyncpg.Connection,
    number: int,
    status: str,
    *,
    message: AnyJobMessage | None = None,
    result: bytes | None = None,
    params: bytes | None = PARAMS,
    outputs: bytes | None = None,
    tenant: str = "acme",
    run: int = 1,
    step: int = 1,
) -> str:
    """Write a row as the status store does. Returns the job's id."""
    job_id = str(UUID(int=number))
    stored = None if message is None else messages.encode(message)
    at = START + timedelta(seconds=number)
    columns = (text(result), at, tenant, text(stored), text(params), text(outputs))
    await connection.execute(INSERT, job_id, run, step, status, "second", *columns)
    return job_id


def due(number: int = 1, outputs: dict[str, bytes] | None = None, run: int = 1, step: int = 1) -> Due:
    """A message without its params, as a row has it."""
    done = tuple(
        StageRun(stage, 1, START, START, 1.0, msgspec.Raw(value) if value else messages.NOTHING)
        for stage, value in (outputs or {}).items()
    )
    return Due(
        job_id=str(UUID(int=number)),
        type="clip",
        tenant="acme",
        step=step,
        run=run,
        created_at=START,
        at=START,
        stage="second",
        reason="handed_over",
        finished=done,
    )


async def shown(gateway: Database, job_id: str, include: tuple[str, ...] = BOTH) -> dict[str, object]:
    job = await gateway.job(job_id, "acme", include)
    assert job is not None
    decoded: dict[str, object] = msgspec.json.decode(msgspec.json.encode(job_object(job, include)))
    return decoded


async def test_a_running_jobs_outputs_are_those_of_its_message(
    connection: asyncpg.Connection, gateway: Database
) -> None:
    message = due(outputs={"first": b'{"a": [1.50]}', "between": b""})
    job_id = await insert(connection, 1, "processing", message=message)
    job = await gateway.job(job_id, "acme", BOTH)
    assert job is not None
    assert bytes(job.params) == PARAMS, "byte for byte"
    assert (await shown(gateway, job_id))["outputs"] == {"first": {"a": [1.5]}, "between": None}
    for include in ((), ("params",), ("outputs",)):
        one = await gateway.job(job_id, "acme", include)
        assert one is not None
        assert (bool(one.params), one.finished is not None) == ("params" in include, "outputs" in include)


async def test_a_completed_jobs_outputs_are_its_column_and_its_result(
    connection: asyncpg.Connection, gateway: Database
) -> None:
    result = b'{"stages_completed":["first","between","second"],"total_duration_seconds":1.0,"output":[1]}'
    job_id = await insert(connection, 1, "completed", result=result, outputs=b'{"first":"a"}')
    job = await shown(gateway, job_id)
    assert job["outputs"] == {"first": "a", "between": None, "second": [1]}
    nothing = await insert(connection, 2, "completed", result=result.replace(b"[1]", b"null"), params=None)
    job = await shown(gateway, nothing)
    assert (job["params"], job["outputs"]) == ({}, {"first": None, "between": None, "second": None})


async def test_a_completed_job_of_release_0_1_0_has_no_outputs(
    connection: asyncpg.Connection, gateway: Database
) -> None:
    result = b'{"stages_completed":["first","second"],"total_duration_seconds":1.0}'
    job_id = await insert(connection, 1, "completed", result=result, params=None)
    job = await shown(gateway, job_id)
    assert (job["params"], job["outputs"]) == ({}, {"first": None, "second": None})


async def test_outputs_of_the_run_before_are_not_shown(connection: asyncpg.Connection, gateway: Database) -> None:
    """The first tick of a retry from the start may be recorded before its first message."""
    job_id = await insert(connection, 1, "processing", message=due(outputs={"first": b"1"}), run=2, step=3)
    assert (await shown(gateway, job_id))["outputs"] == {}


async def test_a_row_without_a_message_has_no_outputs(connection: asyncpg.Connection, gateway: Database) -> None:
    job_id = await insert(connection, 1, "processing", params=None)
    assert {key: (await shown(gateway, job_id))[key] for key in BOTH} == {"params": {}, "outputs": {}}


async def test_another_tenant_gets_nothing(connection: asyncpg.Connection, gateway: Database) -> None:
    job_id = await insert(connection, 1, "processing", message=due(outputs={"first": b"1"}))
    assert await gateway.job(job_id, "beta", BOTH) is None
    query = JobQuery(status=None, type=None, created_after=None, created_before=None, limit=50, cursor=None)
    assert (await gateway.jobs(query, "beta", BOTH)).jobs == []


async def test_the_whole_message_is_that_of_the_row_with_its_params(
    connection: asyncpg.Connection, gateway: Database
) -> None:
    job_id = await insert(connection, 1, "processing", message=due(outputs={"first": b"1"}))
    kept = await gateway.last_message(job_id)
    assert kept is not None
    assert bytes(kept.message.params) == PARAMS
    assert kept.payload.count(b'"params"') == 1
    plain = await insert(connection, 2, "processing", message=due(2), params=None)
    kept = await gateway.last_message(plain)
    assert kept is not None
    assert kept.message == due(2)


@pytest.mark.parametrize("include", [("params",), ("outputs",), BOTH], ids="+".join)
@pytest.mark.parametrize("kib", [1, 60])
async def test_the_pages_of_a_list_end_at_8_mib_and_have_every_job_once(
    connection: asyncpg.Connection, gateway: Database, include: tuple[str, ...], kib: int
) -> None:
    ids = []
    for number in range(1, 321):
        size = kib * KIB if number % 2 else KIB
        value = b'"%s"' % (b"a" * (size - 2))
        if number % 3:
            message = due(number, {"first": value})
            ids.append(await insert(connection, number, "processing", message=message, params=value))
        else:
            last = value if number % 2 and kib < 16 else b"null"
            result = b'{"stages_completed":["first","second"],"total_duration_seconds":1.0,"output":%s}' % last
            column = b'{"first":%s}' % value
            ids.append(await insert(connection, number, "completed", result=result, params=value, outputs=column))
    query = JobQuery(status=None, type=None, created_after=None, created_before=None, limit=1000, cursor=None)
    seen: list[str] = []
    pages = 0
    while True:
        page = await gateway.jobs(query, "acme", include)
        body = job_list.page(page, include)
        assert len(msgspec.json.encode(body)) <= MAX_PAGE_BYTES
        seen += [job.id for job in body.jobs]
        pages += 1
        if body.next_cursor is None:
            break
        assert page.jobs
        query = msgspec.structs.replace(query, cursor=Cursor(page.jobs[-1].created_at, page.jobs[-1].job_id))
    assert seen == ids[::-1]
    assert (pages > 1) == (kib == 60)


async def test_a_page_has_one_job_at_least_however_large_it_is(
    connection: asyncpg.Connection, gateway: Database
) -> None:
    huge = b'"%s"' % (b"a" * (MAX_PAGE_BYTES + KIB))
    ids = [await insert(connection, number, "processing", message=due(number), params=huge) for number in (1, 2)]
    query = JobQuery(status=None, type=None, created_after=None, created_before=None, limit=50, cursor=None)
    first = await gateway.jobs(query, "acme", ("params",))
    assert ([job.job_id for job in first.jobs], first.more) == ([ids[1]], True)
    cursor = Cursor(first.jobs[0].created_at, ids[1])
    second = await gateway.jobs(msgspec.structs.replace(query, cursor=cursor), "acme", ("params",))
    assert ([job.job_id for job in second.jobs], second.more) == ([ids[0]], False)


@pytest.mark.parametrize("include", [("outputs",), BOTH], ids="+".join)
async def test_a_page_counts_the_last_output_twice_which_is_also_in_the_result(
    connection: asyncpg.Connection, gateway: Database, include: tuple[str, ...]
) -> None:
    output = b'"%s"' % (b"a" * 15 * KIB)
    result = b'{"stages_completed":["second"],"total_duration_seconds":1.0,"output":%s}' % output
    for number in range(1, 401):
        await insert(connection, number, "completed", result=result, params=None)
    query = JobQuery(status=None, type=None, created_after=None, created_before=None, limit=1000, cursor=None)
    page = await gateway.jobs(query, "acme", include)
    assert page.more
    assert MAX_PAGE_BYTES * 0.9 < len(msgspec.json.encode(job_list.page(page, include))) <= MAX_PAGE_BYTES


@pytest.mark.parametrize("text", [b"a", "é".encode()], ids=["ascii", "utf-8"])
async def test_a_page_of_results_alone_ends_at_8_mib_too(
    connection: asyncpg.Connection, gateway: Database, text: bytes
) -> None:
    output = b'"%s"' % (text * (15 * KIB // len(text)))
    result = b'{"stages_completed":["second"],"total_duration_seconds":1.0,"output":%s}' % output
    for number in range(1, 601):
        await insert(connection, number, "completed", result=result, params=None)
    query = JobQuery(status=None, type=None, created_after=None, created_before=None, limit=1000, cursor=None)
    page = await gateway.jobs(query, "acme")
    assert page.more
    assert MAX_PAGE_BYTES * 0.9 < len(msgspec.json.encode(job_list.page(page, ()))) <= MAX_PAGE_BYTES
    cursor = Cursor(page.jobs[-1].created_at, page.jobs[-1].job_id)
    rest = await gateway.jobs(msgspec.structs.replace(query, cursor=cursor), "acme")
    assert (len(page.jobs) + len(rest.jobs), rest.more) == (600, False)
