"""Does anything get dearer as the system fills? Cost per job and GET latency at a growing backlog and a growing table,
and throughput with 1, 2 and 4 workers of a stage that sleeps.

    python -m bench.scenarios.scaling [--max N] [--only backlog|rows|workers] [--json FILE]

`--max` bounds the backlog and the rows (default 100,000; 10,000,000 rows need 6 GB of disk and some minutes). The cost
is that of a window of 2,000 jobs at that depth: each process's CPU, divided by the jobs that it did meanwhile.
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
#: Jobs that pass before a window begins: the workers start, their code gets warm.
WARM_UP = 1_000
GETS = 2_000
GET_ROUNDS = 5

INSERT_ROWS = """
WITH made AS (
    INSERT INTO jobs (id, type, run, step, attempt, progress, status, stage, result, created_at, updated_at)
    SELECT uuidv7(-make_interval(secs => n * 0.001)), 'mock_process', 1, 3, 0, 100, 'completed', 'indexing',
           '{"stages_completed": ["extracting", "analyzing", "indexing"], "total_duration_seconds": 0.012345}',
           now() - make_interval(secs => n * 0.001), now() - make_interval(secs => n * 0.001 - 6)
    FROM generate_series($1::bigint, $2::bigint, -1) AS n
    RETURNING id, updated_at
)
INSERT INTO job_events (job_id, step, attempt, run, kind, stage, at, ended_stage, ended_attempt, started_at, seconds)
SELECT id, 3, 0, 1, 'completed', 'indexing', updated_at, 'indexing', 1, updated_at, 1.0 FROM made
"""


def options() -> argparse.Namespace:
    """What to measure, and how far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max", type=int, default=100_000, help="the longest backlog and the largest table")
    parser.add_argument("--only", choices=("backlog", "rows", "workers"), help="one of the three")
    parser.add_argument("--sync", choices=("default", "always"), default="default", help="nats-server's sync_interval")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def fill(nats_url: str, jobs: int) -> list[str]:
    """Queue so many jobs, as the gateway would, without HTTP. Returns a sample of at most 2,000 ids."""
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

    queue_state.ask(nats_url, publish)
    return sample


def wait_for(nats_url: str, consumer: str, acknowledged: int) -> None:
    """Until this consumer's acknowledgements are so many."""
    deadline = time.monotonic() + 600
    while queue_state.acknowledged(nats_url, (consumer,))[consumer] < acknowledged:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{consumer} acknowledged fewer than {acknowledged} messages within 600 s")
        time.sleep(0.05)


def settle(system: System) -> None:
    """Until the status store has recorded everything, and a moment more."""
    deadline = time.monotonic() + 1200
    while queue_state.waiting(system.nats.url, "status-store") > 0:
        if time.monotonic() > deadline:
            raise RuntimeError("the status store did not catch up within 1200 s")
        time.sleep(0.2)
    time.sleep(1)


def window(system: System, load: Load) -> report.Figures:
    """CPU milliseconds of one job by process, while 2,000 are posted and at least as many are done."""
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
    # A job is four messages on the stream; every stage and the gateway see one of it.
    jobs: dict[str, float] = {name: after[name] - before[name] for name in STAGES}
    jobs["gateway"] = WINDOW
    jobs["status-store"] = (after["status-store"] - before["status-store"]) / 4
    jobs["nats-server"] = jobs["postgres"] = (after["published"] - before["published"]) / 4
    found = {name: 1000 * spent[name] / jobs[name] for name in spent}
    return {**found, "sum": sum(found.values())}


def gets(load: Load, ids: list[str]) -> dict[str, float]:
    """p50 and p99 of GET in milliseconds: medians of some rounds."""
    load.get(ids, GETS)
    return report.median([report.spread(load.get(ids, GETS)["ms"]) for _ in range(GET_ROUNDS)])


def backlog(directory: Path, wanted: argparse.Namespace, found: dict[str, report.Figures]) -> None:
    """At each depth: GET of queued jobs with the workers away, then a window with them."""
    # The gateway's own limit is what a million queued jobs would meet otherwise.
    environ = {"HEIMDEX_MAX_PENDING_JOBS": str(10 * BACKLOGS[-1])}
    with System(directory, wanted.sync, 0, environ) as system, Load(system.port, 4) as load:
        for depth in (each for each in BACKLOGS if each <= wanted.max):
            began = time.monotonic()
            queued = queue_state.waiting(system.nats.url, STAGES[0])
            # So that the window ends at the depth that it is named after, not far below.
            sample = fill(system.nats.url, depth + WARM_UP + WINDOW - queued)
            settle(system)
            seen = gets(load, sample)
            memory = system.memory_bytes()["nats-server"] / 2**20
            found[f"{depth:,}"] = {"get": seen, "cpu": window(system, load), "nats_mib": memory}
            say(f"backlog {depth:,}", began)


def rows(directory: Path, wanted: argparse.Namespace, found: dict[str, report.Figures]) -> None:
    """At each size of the table: GET of rows anywhere in it, and a window."""
    with System(directory, wanted.sync) as system, Load(system.port, 4) as load:
        load.post(WARM_UP)
        queue_state.wait_until_empty(system.nats.url)
        present = WARM_UP
        for count in (each for each in ROWS if each <= wanted.max):
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
            found[f"{count:,}"] = {"get": gets(load, sample), "cpu": window(system, load), "database_mib": size}
            queue_state.wait_until_empty(system.nats.url)
            present += WINDOW
            say(f"rows {count:,}", began)


def workers(directory: Path, wanted: argparse.Namespace, found: dict[str, report.Figures]) -> None:
    """Jobs per second of 1, 2 and 4 workers of a stage that sleeps, each with ten jobs at a time."""
    environ = {
        "HEIMDEX_PIPELINES": sleeping.__name__,
        "PYTHONPATH": str(ROOT),
        "HEIMDEX_STAGE_CONCURRENCY": str(SLEEPING_CONCURRENCY),
    }
    seconds, stage = 8, "sleeping"
    with System(directory, wanted.sync, 0, environ, stages=(stage,)) as system, Load(system.port) as load:
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
            times = rate / found["1"]["per_second"] if found else 1.0
            found[str(count)] = {"per_second": rate, "times": times, "most": most}
            say(f"{count} worker(s)", began)


def say(what: str, began: float) -> None:
    """One line on stderr: the long ones take minutes."""
    print(f"{what}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr)


def show(found: dict[str, dict[str, report.Figures]], machine: str) -> str:
    """The tables."""
    rows_shown: list[list[str]] = []
    for part, label in (("backlog", "queued jobs"), ("rows", "rows")):
        if not found.get(part):
            continue
        names = next(iter(found[part].values()))["cpu"].keys()
        short = {"sum": "together", "status-store": "store", "nats-server": "nats"}
        rows_shown.append([label, "GET p50", "p99", *(short.get(name, name) for name in names), "of the first"])
        first = next(iter(found[part].values()))
        for depth, each in found[part].items():
            ratio = each["cpu"]["sum"] / first["cpu"]["sum"]
            get = [f"{each['get'][name]:.1f} ms" for name in ("p50", "p99")]
            rows_shown.append([depth, *get, *(f"{value:.3f}" for value in each["cpu"].values()), f"{ratio:.2f}"])
    if found.get("workers"):
        rows_shown.append(["workers of a stage that sleeps 50 ms, ten at a time", "jobs/s", "times one", "at most"])
        for count, each in found["workers"].items():
            rows_shown.append([count, f"{each['per_second']:.0f}", f"{each['times']:.2f}", f"{each['most']:.0f}"])
    return report.table(f"CPU ms a job by process, in a window of {WINDOW:,} jobs\n{machine}", rows_shown)


def main() -> None:
    """Exit code 1 for a wrong outcome."""
    wanted = options()
    machine = report.machine()
    found: dict[str, dict[str, report.Figures]] = {}
    wrong = False
    for name, part in (("workers", workers), ("rows", rows), ("backlog", backlog)):
        if wanted.only not in (None, name):
            continue
        found[name] = {}
        try:
            with folder(name) as directory:
                part(directory, wanted, found[name])
        except RuntimeError as error:
            # What was measured until then is shown all the same.
            print(f"Wrong: {name}: {error}", file=sys.stderr)
            wrong = True
    print(show(found, machine))
    report.save(wanted.json, {"machine": machine, **found})
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
