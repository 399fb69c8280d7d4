"""Lists from a real Postgres: exact for every filter, in order, without a scan of the rows that do not match."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from heimdex_gateway.jobs import repository
from heimdex_gateway.jobs.repository import STATUSES, Cursor, Database, JobQuery

START = datetime(2025, 10, 28, 12, tzinfo=UTC)
TENANTS, TYPES = ("acme", "beta", "default"), ("mock_process", "other", "retired")

INSERT = """
INSERT INTO jobs (id, type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at, tenant)
SELECT id, type, 1, 0, 0, CASE status WHEN 'completed' THEN 100 ELSE 0 END, status, NULL,
       CASE status WHEN 'completed' THEN '{}'::json END, CASE status WHEN 'failed' THEN 'oh' END, at, at, tenant
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS made (id, tenant, type, status, at)
"""

#: id, tenant, type, status, created_at.
Row = tuple[str, str, str, str, datetime]


async def insert(connection: asyncpg.Connection, rows: list[Row]) -> None:
    await connection.execute(INSERT, *(list(column) for column in zip(*rows, strict=True)))


def random_rows(random: Random, count: int) -> list[Row]:
    """Return random rows, many of which were created in the same microsecond as others."""
    return [
        (
            str(UUID(int=random.getrandbits(128))),
            random.choice(TENANTS),
            random.choice(TYPES),
            random.choice(STATUSES),
            START + timedelta(microseconds=random.randrange(count // 4)),
        )
        for _ in range(count)
    ]


def query(**fields: Any) -> JobQuery:
    nothing = dict.fromkeys(("status", "type", "created_after", "created_before", "cursor"))
    return JobQuery(**{**nothing, "limit": 50, **fields})


def expected(rows: list[Row], tenant: str, asked: JobQuery) -> list[str]:
    checks: list[Callable[[Row], bool]] = [
        lambda row: row[1] == tenant,
        lambda row: asked.type in (None, row[2]),
        lambda row: asked.status in (None, row[3]),
        lambda row: asked.created_after is None or row[4] > asked.created_after,
        lambda row: asked.created_before is None or row[4] < asked.created_before,
        lambda row: asked.cursor is None or (row[4], row[0]) < (asked.cursor.created_at, asked.cursor.id),
    ]
    matching = [row for row in rows if all(check(row) for check in checks)]
    return [row[0] for row in sorted(matching, key=lambda row: (row[4], row[0]), reverse=True)[: asked.limit + 1]]


async def test_every_filter_and_cursor_returns_exactly_the_matching_jobs_in_order(
    connection: asyncpg.Connection, gateway: Database
) -> None:
    random = Random(7)
    rows = random_rows(random, 600)
    await insert(connection, rows)
    for _ in range(400):
        place, other = random.choice(rows), random.choice(rows)
        moments = [None, place[4], other[4], START - timedelta(1), START + timedelta(1)]
        asked = query(
            type=random.choice([None, *TYPES, "unheard_of"]),
            status=random.choice([None, *STATUSES]),
            created_after=random.choice(moments),
            created_before=random.choice(moments),
            limit=random.choice([1, 7, 50, 1000]),
            cursor=random.choice([None, Cursor(place[4], place[0]), Cursor(other[4], other[0])]),
        )
        tenant = random.choice([*TENANTS, "nobody"])
        include = random.choice([(), ("params",), ("outputs", "params")])
        page = await gateway.jobs(asked, tenant, include)
        matching = expected(rows, tenant, asked)
        assert [job.job_id for job in page.jobs] == matching[: asked.limit], asked
        assert page.more == (len(matching) > asked.limit), asked
        assert {job.tenant for job in page.jobs} <= {tenant}


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


@pytest.mark.parametrize("kinds", [repository.KINDS, repository.ONE_KIND])
@pytest.mark.parametrize("statuses", [["failed"], ["completed"], list(STATUSES)])
async def test_a_page_of_a_large_table_reads_only_its_own_index_entries_with_a_generic_plan_too(
    connection: asyncpg.Connection, kinds: str, statuses: list[str]
) -> None:
    """The newest tenth is a backlog in front of all other jobs; one job in a thousand has failed."""
    await connection.execute(
        """
        INSERT INTO jobs (id, type, run, step, attempt, progress, status, result, error, created_at, updated_at, tenant)
        SELECT gen_random_uuid(), 'mock_process', 1, 0, 0, CASE status WHEN 'completed' THEN 100 ELSE 0 END, status,
               CASE status WHEN 'completed' THEN '{}'::json END, CASE status WHEN 'failed' THEN 'oh' END,
               now() - n * interval '1 s', now(), CASE n % 10 WHEN 3 THEN 'acme' ELSE 'default' END
        FROM generate_series(1, 100000) AS n, LATERAL (
            SELECT CASE WHEN n < 10000 THEN 'pending' WHEN n % 1000 = 0 THEN 'failed' ELSE 'completed' END AS status
        ) AS made
        """
    )
    await connection.execute("VACUUM ANALYZE jobs")
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    query = repository.LIST.format(kinds=kinds, limit=51, columns=repository.COLUMNS)
    arguments = [
        "default",
        statuses,
        repository.BEGIN_OF_TIME,
        datetime.now(UTC) - timedelta(hours=6),
        repository.FIRST_ID,
    ]
    arguments += ["mock_process"] if kinds == repository.ONE_KIND else []
    (row,) = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *arguments)
    plan = json.loads(row[0])[0]["Plan"]
    plan_nodes = nodes(plan)
    assert plan["Actual Rows"] == 51
    assert not [node for node in plan_nodes if node["Node Type"] == "Seq Scan"]
    scans = [node for node in plan_nodes if "Index Name" in node]
    assert {node["Index Name"] for node in scans} == {"jobs_listed", "jobs_pkey"}
    assert not [node for node in scans if node.get("Rows Removed by Filter")]
    read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert read < 500, "the table has thousands of pages"


async def test_a_job_is_returned_to_its_own_tenant_only(connection: asyncpg.Connection, gateway: Database) -> None:
    rows = random_rows(Random(1), 30)
    await insert(connection, rows)
    for job_id, tenant, *_ in rows:
        jobs = await asyncio.gather(*(gateway.job(job_id, one) for one in TENANTS))
        assert [job is not None for job in jobs] == [one == tenant for one in TENANTS]
