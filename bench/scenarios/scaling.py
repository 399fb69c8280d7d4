"""Measures how the cost of a job and the latency of GET grow with the backlog and with the table, and the throughput
with 1, 2 and 4 workers of a stage that sleeps.

    python -m bench.scenarios.scaling [--max N] [--only backlog|rows|workers] [--json FILE]

`--max` limits the backlog and the rows (default 100,000; 10,000,000 rows need 6 GB of disk and some minutes). The cost
is measured over a window of 2,000 jobs at each size: the CPU time of each process, divided by the number of jobs that
it processed in the window.
"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

from nats.aio.client import Client
from uuid_utils import uuid7

from bench.support import queue_state, report, sleeping
from bench.support.load import Load
from bench.support.payloads import templates
from bench.support.processes import ROOT, STAGES, System, folder, spent_between

WINDOW = 2_000
BACKLOGS = (1_000, 100_000, 1_000_000)
ROWS = (10_000, 1_000_000, 10_000_000)
WORKERS = (1, 2, 4)
SLEEPING_CONCURRENCY = 10
#: The number of jobs that newly started workers process before a window begins, to warm up.
WARM_UP = 1_000
GETS = 2_000
GET_ROUNDS = 5

INSERT_ROWS = """
WITH inserted AS (
    INSERT INTO jobs (id, type, run, step, attempt, progress, status, stage, result, created_at, updated_at)
    SELECT uuidv7(-make_interval(secs => n * 0.001)), 'mock_process', 1, 3, 0, 100, 'completed', 'indexing',
           '{"stages_completed": ["extracting", "analyzing", "indexing"], "total_duration_seconds": 0.012345}',
           now() - make_interval(secs => n * 0.001), now() - make_interval(secs => n * 0.001 - 6)
    FROM generate_series($1::bigint, $2::bigint, -1) AS n
    RETURNING id, updated_at
)
INSERT INTO job_events (job_id, step, attempt, run, kind, stage, at, ended_stage, ended_attempt, started_at, seconds)
SELECT id, 3, 0, 1, 'completed', 'indexing', updated_at, 'indexing', 1, updated_at, 1.0 FROM inserted
"""


def parse_options() -> argparse.Namespace:
    """Parse the command line: the measurements, their maximum size, and the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max", type=int, default=100_000, help="maximum backlog and number of rows")
    parser.add_argument("--only", choices=("backlog", "rows", "workers"), help="run only this measurement")
    parser.add_argument("--sync", choices=("default", "always"), default="default", help="sync_interval of nats-server")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser.parse_args()


def fill(nats_url: str, jobs: int) -> list[str]:
    """Publish this many jobs as the gateway does, without HTTP. Returns a random sample of at most 2,000 ids."""
    first = templates()[0]
    sample: list[str] = []

    async def publish(client: Client) -> None:
        js = client.jetstream(timeout=60)
        for start in range(0, jobs, 500):
            ids = [str(uuid7()) for _ in range(min(500, jobs - start))]
            subject = f"heimdex.jobs.{first.token}."
            sending = (js.publish(subject + each, first.payload(each), headers=first.headers(each, 0)) for each in ids)
            await asyncio.gather(*sending)
            sample.append(random.choice(ids))
        random.shuffle(sample)
        del sample[GETS:]

    queue_state.with_client(nats_url, publish)
    return sample


def wait_for(nats_url: str, consumer: str, acknowledged: int) -> None:
    """Wait until this consumer has this many acknowledgements. Raises RuntimeError after 600 s."""
    deadline = time.monotonic() + 600
    while queue_state.acknowledged(nats_url, (consumer,))[consumer] < acknowledged:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{consumer} acknowledged fewer than {acknowledged} messages within 600 s")
        time.sleep(0.05)


def settle(system: System) -> None:
    """Wait until the status store has recorded every message, and one second more.

    Raises RuntimeError after 1200 s.
    """
    deadline = time.monotonic() + 1200
    while queue_state.waiting(system.nats.url, "status-store") > 0:
        if time.monotonic() > deadline:
            raise RuntimeError("the status store did not catch up within 1200 s")
        time.sleep(0.2)
    time.sleep(1)


def window(system: System, load: Load) -> report.Figures:
    """POST 2,000 jobs while the workers process at least as many. Returns the CPU milliseconds per job by process.

    For a system without workers, it starts one per stage and stops them at the end.
    """
    consumers = (*STAGES, "status-store")
    done = queue_state.acknowledged(system.nats.url, consumers)
    if system.replicas == 0:
        system.start_workers(1)
    wait_for(system.nats.url, STAGES[-1], done[STAGES[-1]] + (WARM_UP if system.replicas == 0 else 0))
    before, cpu = queue_state.acknowledged(system.nats.url, consumers), system.cpu_seconds()
    load.post(WINDOW)
    wait_for(system.nats.url, STAGES[-1], before[STAGES[-1]] + WINDOW)
    after, spent = queue_state.acknowledged(system.nats.url, consumers), spent_between(cpu, system.cpu_seconds())
    if system.replicas == 0:
        system.group.stop(*STAGES)
    # A job has four messages on the stream. The gateway and each stage process one of them.
    jobs: dict[str, float] = {name: after[name] - before[name] for name in STAGES}
    jobs["gateway"] = WINDOW
    jobs["status-store"] = (after["status-store"] - before["status-store"]) / 4
    jobs["nats-server"] = jobs["postgres"] = (after["published"] - before["published"]) / 4
    costs = {name: 1000 * spent[name] / jobs[name] for name in spent}
    return {**costs, "sum": sum(costs.values())}


def gets(load: Load, ids: list[str]) -> dict[str, float]:
    """Return p50 and p99 of GET in milliseconds, as medians of five rounds after one to warm up."""
    load.get(ids, GETS)
    return report.median([report.spread(load.get(ids, GETS)["ms"]) for _ in range(GET_ROUNDS)])


def backlog(directory: Path, options: argparse.Namespace, figures: dict[str, report.Figures]) -> None:
    """At each depth, measure GET of queued jobs without workers, then a window with them. Adds to `figures`."""
    # Above the default, because a million queued jobs would exceed the gateway's admission limit.
    environ = {"HEIMDEX_MAX_PENDING_JOBS": str(10 * BACKLOGS[-1])}
    with System(directory, options.sync, 0, environ) as system, Load(system.port, 4) as load:
        for depth in (each for each in BACKLOGS if each <= options.max):
            began = time.monotonic()
            queued = queue_state.waiting(system.nats.url, STAGES[0])
            # The window consumes jobs: with these added, it ends at this depth and not below it.
            sample = fill(system.nats.url, depth + WARM_UP + WINDOW - queued)
            settle(system)
            latencies = gets(load, sample)
            memory = system.memory_bytes()["nats-server"] / 2**20
            figures[f"{depth:,}"] = {"get": latencies, "cpu": window(system, load), "nats_mib": memory}
            log_progress(f"backlog {depth:,}", began)


def rows(directory: Path, options: argparse.Namespace, figures: dict[str, report.Figures]) -> None:
    """At each size of the table, measure GET of random rows, then a window. Adds to `figures`."""
    with System(directory, options.sync) as system, Load(system.port, 4) as load:
        load.post(WARM_UP)
        queue_state.wait_until_empty(system.nats.url)
        present = WARM_UP
        for count in (each for each in ROWS if each <= options.max):
            began = time.monotonic()
            while present < count:
                step = min(500_000, count - present)
                age = ROWS[-1] - present
                queue_state.sql(system.postgres.url, INSERT_ROWS, age, age - step + 1)
                present += step
            for statement in ("VACUUM ANALYZE jobs", "VACUUM ANALYZE job_events", "CHECKPOINT"):
                queue_state.sql(system.postgres.url, statement)
            size = queue_state.sql(system.postgres.url, "SELECT pg_database_size(current_database())")[0][0] / 2**20
            percent = min(100.0, 100 * 20 * GETS / count)
            query = f"SELECT id::text FROM jobs TABLESAMPLE BERNOULLI ({percent}) ORDER BY random() LIMIT {GETS}"
            sample = [row[0] for row in queue_state.sql(system.postgres.url, query)]
            figures[f"{count:,}"] = {"get": gets(load, sample), "cpu": window(system, load), "database_mib": size}
            queue_state.wait_until_empty(system.nats.url)
            present += WINDOW
            log_progress(f"rows {count:,}", began)


def workers(directory: Path, options: argparse.Namespace, figures: dict[str, report.Figures]) -> None:
    """Measure the jobs per second of 1, 2 and 4 workers of a stage that sleeps, each with ten jobs at a time. Adds to
    `figures`.
    """
    environ = {
        "HEIMDEX_PIPELINES": sleeping.__name__,
        "PYTHONPATH": str(ROOT),
        "HEIMDEX_STAGE_CONCURRENCY": str(SLEEPING_CONCURRENCY),
    }
    seconds, stage = 8, "sleeping"
    with System(directory, options.sync, 0, environ, stages=(stage,)) as system, Load(system.port) as load:
        for count in WORKERS:
            began = time.monotonic()
            most = count * SLEEPING_CONCURRENCY / sleeping.SECONDS
            load.post(int(most * (seconds + 3)), body='{"type": "sleeping"}')
            settle(system)
            done = queue_state.acknowledged(system.nats.url, (stage,))[stage]
            system.start_workers(count)
            wait_for(system.nats.url, stage, done + int(most))
            first, at = queue_state.acknowledged(system.nats.url, (stage,))[stage], time.perf_counter()
            time.sleep(seconds)
            last, spent = queue_state.acknowledged(system.nats.url, (stage,))[stage], time.perf_counter() - at
            queue_state.wait_until_empty(system.nats.url)
            system.group.stop(stage)
            rate = (last - first) / spent
            times = rate / figures["1"]["per_second"] if figures else 1.0
            figures[str(count)] = {"per_second": rate, "times": times, "most": most}
            log_progress(f"{count} worker(s)", began)


def log_progress(measurement: str, began: float) -> None:
    """Print a line to stderr after each measurement, because the long ones take minutes."""
    print(f"{measurement}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr)


def show(figures: dict[str, dict[str, report.Figures]], machine: str) -> str:
    """Return the tables of the figures as text."""
    rows_shown: list[list[str]] = []
    for part, label in (("backlog", "queued jobs"), ("rows", "rows")):
        if not figures.get(part):
            continue
        names = next(iter(figures[part].values()))["cpu"].keys()
        short = {"sum": "total", "status-store": "store", "nats-server": "nats"}
        rows_shown.append([label, "GET p50", "p99", *(short.get(name, name) for name in names), "ratio to first"])
        first = next(iter(figures[part].values()))
        for depth, each in figures[part].items():
            ratio = each["cpu"]["sum"] / first["cpu"]["sum"]
            get = [f"{each['get'][name]:.1f} ms" for name in ("p50", "p99")]
            rows_shown.append([depth, *get, *(f"{value:.3f}" for value in each["cpu"].values()), f"{ratio:.2f}"])
    if figures.get("workers"):
        rows_shown.append(["workers of a stage that sleeps 50 ms, ten at a time", "jobs/s", "ratio to one", "maximum"])
        for count, each in figures["workers"].items():
            rows_shown.append([count, f"{each['per_second']:.0f}", f"{each['times']:.2f}", f"{each['most']:.0f}"])
    return report.table(f"CPU ms per job by process, in a window of {WINDOW:,} jobs\n{machine}", rows_shown)


def main() -> None:
    """Run the benchmark and print the tables. Exits with code 1 when a measurement failed."""
    options = parse_options()
    machine = report.machine()
    figures: dict[str, dict[str, report.Figures]] = {}
    failed = False
    for name, part in (("workers", workers), ("rows", rows), ("backlog", backlog)):
        if options.only not in (None, name):
            continue
        figures[name] = {}
        try:
            with folder(name) as directory:
                part(directory, options, figures[name])
        except RuntimeError as error:
            # The figures that were measured before are still printed.
            print(f"The measurement of {name} failed: {error}", file=sys.stderr)
            failed = True
    print(show(figures, machine))
    report.save(options.json, {"machine": machine, **figures})
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
