"""Compares the latency of the first and the 1,000th page of a list, for each filter, with the gateway on a large table.

    python -m bench.scenarios.pagination [--rows N] [--limit N] [--json FILE]

10,000,000 rows (the default) need 5 GB of disk below .heimdex/bench/ and some minutes. They belong to three tenants:
`default` has nearly all, `acme` has 1 %, `small` has 100. The newest tenth is a backlog of pending jobs, and the oldest
hundredth is pending too (delayed jobs). 1 % have failed, 1 % have another type, the others have completed. The output
also has the time to build the index, which is the time that an upgrade from a version without it takes.
"""

import argparse
import hashlib
import http.client
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench.support import queue_state, report, sleeping
from bench.support.processes import ROOT, System, folder
from heimdex_status_store.database import MIGRATIONS

PAGE = 1_000
ROUNDS = 300
TENANTS = ("default", "acme", "small")
#: The time between the creation of two jobs.
APART_SECONDS = 0.01

FILL = """
INSERT INTO jobs (id, type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at, tenant)
SELECT id, type, 1, 3, 0, CASE status WHEN 'completed' THEN 100 ELSE 0 END, status,
       CASE status WHEN 'pending' THEN NULL ELSE 'indexing' END,
       CASE status WHEN 'completed' THEN
           '{"stages_completed": ["extracting", "analyzing", "indexing"], "total_duration_seconds": 0.012345}'::json
       END,
       CASE status WHEN 'failed' THEN 'The stage indexing failed on attempt 4 of 4: RuntimeError: oh' END,
       at, at + interval '6 s', tenant
FROM (
    SELECT uuidv7(-make_interval(secs => n * $4::float8)) AS id,
           $5::timestamptz - make_interval(secs => n * $4::float8) AS at,
           CASE n % 100 WHEN 7 THEN 'sleeping' ELSE 'mock_process' END AS type,
           CASE WHEN n <= $3 / 10 OR n > $3 - $3 / 100 THEN 'pending' WHEN n % 100 = 13 THEN 'failed'
                ELSE 'completed' END AS status,
           CASE WHEN n % ($3 / 100) = 0 THEN 'small' WHEN n % 100 = 50 THEN 'acme' ELSE 'default' END AS tenant
    FROM generate_series($1::bigint, $2::bigint, -1) AS n
) AS generated
"""


@dataclass
class Case:
    """One list to measure: its label in the table, the tenant and the query parameters."""

    label: str
    tenant: str
    query: dict[str, str]


def cases(now: datetime, rows: int) -> Iterator[Case]:
    """Yield every filter alone, and the combinations that could be slow."""

    def ago(part: float) -> str:
        return (now - timedelta(seconds=rows * APART_SECONDS * part)).strftime("%Y-%m-%dT%H:%M:%SZ")

    fifth = {"created_after": ago(0.7), "created_before": ago(0.5)}
    yield Case("everything", "default", {})
    yield Case("status=completed (behind the backlog)", "default", {"status": "completed"})
    yield Case("status=pending (the backlog)", "default", {"status": "pending"})
    yield Case("status=pending, older than the middle", "default", {"status": "pending", "created_before": ago(0.5)})
    yield Case("status=failed (1 %)", "default", {"status": "failed"})
    yield Case("status=canceled (none)", "default", {"status": "canceled"})
    yield Case("type=sleeping (1 %)", "default", {"type": "sleeping"})
    yield Case("type=sleeping, status=failed (none)", "default", {"type": "sleeping", "status": "failed"})
    yield Case("created_before the middle", "default", {"created_before": ago(0.5)})
    yield Case("a fifth of the time", "default", fifth)
    yield Case("status=failed, in a fifth of the time", "default", {"status": "failed", **fifth})
    yield Case("a tenant with 1 %", "acme", {})
    yield Case("a tenant with 100 jobs", "small", {})


class Client:
    """An HTTP client with one keep-alive connection to the gateway."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def page(self, case: Case, limit: int, cursor: str | None) -> tuple[float, dict[str, Any]]:
        """Request a page. Returns the milliseconds and the decoded response; raises RuntimeError unless it is a 200."""
        query = {**case.query, "limit": str(limit), **({"cursor": cursor} if cursor else {})}
        path, headers = f"/jobs?{urlencode(query)}", {"Authorization": f"Bearer {key(case.tenant)}"}
        began = time.perf_counter()
        self._connection.request("GET", path, headers=headers)
        response = self._connection.getresponse()
        body = response.read()
        ms = 1000 * (time.perf_counter() - began)
        if response.status != 200:
            raise RuntimeError(f"GET {path} returned {response.status}: {body[:200]!r}")
        return ms, json.loads(body)


def key(tenant: str) -> str:
    """Return the API key of a tenant. It is guessable, which does no harm in a gateway that runs for some minutes."""
    return f"key-of-{tenant}"


def measure(client: Client, case: Case, limit: int) -> report.Figures:
    """Measure the first page and the 1,000th, or the last one if there are fewer.

    Returns p50 and p99 of both in milliseconds, the number of the second page, and whether the list is empty.
    """
    last_cursor: str | None = None
    pages = 1
    first_jobs = client.page(case, limit, None)[1]["jobs"]
    while pages < PAGE:
        cursor: str | None = client.page(case, limit, last_cursor)[1]["next_cursor"]
        if cursor is None:
            break
        last_cursor, pages = cursor, pages + 1
    figures: dict[str, Any] = {"pages": pages, "empty": not first_jobs}
    # The two pages alternate, so that changes of the machine's load affect both.
    times: dict[str, list[float]] = {"first": [], "last": []}
    for _ in range(ROUNDS):
        times["first"].append(client.page(case, limit, None)[0])
        times["last"].append(client.page(case, limit, last_cursor)[0])
    return figures | {name: report.spread(values) for name, values in times.items()}


def fill(url: str, rows: int, now: datetime) -> float:
    """Insert the rows without the index of the lists, then build it. Returns the seconds that the index took."""
    queue_state.sql(url, "DROP INDEX jobs_listed")
    for start in range(rows, 0, -500_000):
        queue_state.sql(url, FILL, start, max(1, start - 499_999), rows, APART_SECONDS, now)
    queue_state.sql(url, "VACUUM ANALYZE jobs")
    statement = next(MIGRATIONS.glob("*_up_lists.sql")).read_text()
    began = time.monotonic()
    queue_state.script(url, statement)
    seconds = time.monotonic() - began
    queue_state.sql(url, "ANALYZE jobs")
    queue_state.sql(url, "CHECKPOINT")
    return seconds


def run(directory: Path, options: argparse.Namespace) -> report.Figures:
    """Start the servers and the gateway, fill the table, and measure every case."""
    entries = [f"{tenant}:{hashlib.sha256(key(tenant).encode()).hexdigest()}" for tenant in TENANTS]
    environ = {
        "HEIMDEX_PIPELINES": f"heimdex_contracts.mock_process,{sleeping.__name__}",
        "PYTHONPATH": str(ROOT),
        "HEIMDEX_API_KEYS": ",".join(entries),
    }
    figures: report.Figures = {"lists": {}}
    with System(directory, replicas=0, environ=environ) as system:
        # Its reconciler would look for the messages of all these unfinished jobs.
        system.group.stop("status-store")
        now = datetime.now(UTC)
        began = time.monotonic()
        figures["index_seconds"] = fill(system.postgres.url, options.rows, now)
        sizes = "SELECT pg_total_relation_size('jobs'), pg_relation_size('jobs_listed')"
        figures["table_mib"], figures["index_mib"] = (
            size / 2**20 for size in queue_state.sql(system.postgres.url, sizes)[0]
        )
        print(f"{options.rows:,} rows: inserted in {time.monotonic() - began:.0f} s", file=sys.stderr)
        client = Client(system.port)
        for case in cases(now, options.rows):
            figures["lists"][case.label] = measure(client, case, options.limit)
    return figures


def show(figures: report.Figures, options: argparse.Namespace, machine: str) -> str:
    """Return the table of the figures, and the figures of the index, as text."""
    rows = [["", "page 1 p50", "p99", "page", "p50", "p99", "ratio of p50"]]
    for name, each in figures["lists"].items():
        first, last, page = each["first"], each["last"], f"{each['pages']:,}"
        cells = [f"{first['p50']:.1f} ms", f"{first['p99']:.1f} ms"]
        if each["pages"] > 1:
            cells += [page, f"{last['p50']:.1f} ms", f"{last['p99']:.1f} ms", f"{last['p50'] / first['p50']:.2f}"]
        rows.append([name, *cells])
    title = f"Pages of {options.limit} jobs in {options.rows:,} jobs\n{machine}"
    index = f"index jobs_listed: built in {figures['index_seconds']:.0f} s, {figures['index_mib']:,.0f} MiB "
    return f"{report.table(title, rows)}\n\n{index}of the {figures['table_mib']:,.0f} MiB of the table and its indexes"


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="jobs in the table; at least 10,000")
    parser.add_argument("--limit", type=int, default=50, help="jobs per page")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    machine = report.machine()
    with folder("listing") as directory:
        figures = run(directory, options)
    print(show(figures, options, machine))
    report.save(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
