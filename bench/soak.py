"""Looks for growth of memory, streams and tables under a steady load of about half the maximum rate, for half an hour.

    python -m bench.soak [--minutes 30] [--rate JOBS_PER_SECOND] [--json FILE]

Samples the memory of each process, the number of messages in the streams and the number of rows in the tables every
10 s. Prints the mean of the middle third of the samples beside that of the last third. The retention of finished jobs
is three minutes here, so that the tables reach a steady size too. Because they are pruned every ten minutes, that takes
`--minutes 25` or more. Exits with code 1 when a job was lost, or when a process of Heimdex grew by more than 10 % and
5 MiB from the middle third to the last.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
from nats.aio.client import Client

from bench.support import report
from bench.support.load import Load
from bench.support.processes import System, folder

SAMPLE_SECONDS = 10.0
BURST_SECONDS = 0.25
#: The number of jobs in the trial that measures the maximum rate.
TRIAL = 2_000
RETENTION_DAYS = 3 / (24 * 60)
STREAMS = ("HEIMDEX_JOBS", "HEIMDEX_ATTEMPTS", "HEIMDEX_PROGRESS", "HEIMDEX_UNUSABLE")
MIB = 1024 * 1024

#: Bytes by process, messages by stream and rows by table.
Sample = dict[str, float]


def parse_options() -> argparse.Namespace:
    """Parse the command line: the duration, the rate and the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, help="jobs per second; by default half the maximum rate of a trial")
    parser.add_argument("--json", metavar="FILE", help="write the samples to this file")
    return parser.parse_args()


def request_api(nats_url: str, call: str) -> dict[str, Any]:
    """Send a request to `$JS.API.<call>` on a new connection, and return the decoded response."""

    async def request() -> dict[str, Any]:
        nc = Client()
        await nc.connect(nats_url)
        try:
            response: dict[str, Any] = json.loads((await nc.request(f"$JS.API.{call}", b"", timeout=30)).data)
            return response
        finally:
            await nc.close()

    return asyncio.run(request())


def counted(system: System) -> Sample:
    """Return the number of messages by stream and of rows by table."""

    async def count_rows() -> Sample:
        connection = await asyncpg.connect(system.postgres.url)
        try:
            return {
                table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("jobs", "job_events")
            }
        finally:
            await connection.close()

    messages = {
        name: float(request_api(system.nats.url, f"STREAM.INFO.{name}")["state"]["messages"]) for name in STREAMS
    }
    return messages | asyncio.run(count_rows())


def drained(system: System, seconds: float = 120) -> bool:
    """Wait until the jobs stream is empty: every job is in a terminal state and recorded. Returns False on timeout."""
    deadline = time.monotonic() + seconds
    while request_api(system.nats.url, "STREAM.INFO.HEIMDEX_JOBS")["state"]["messages"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def maximum_rate(system: System, load: Load) -> float:
    """Measure the jobs per second, from the first POST to the last record, in a second trial after one to warm up.

    Raises RuntimeError when the trial's jobs do not finish within 120 s.
    """
    for _ in range(2):
        began = time.monotonic()
        load.post(TRIAL)
        if not drained(system):
            raise RuntimeError("the trial's jobs did not finish")
        rate = TRIAL / (time.monotonic() - began)
    return rate


def soak(system: System, load: Load, rate: float, seconds: float) -> tuple[list[Sample], int]:
    """Load the system for this many seconds. Returns the samples and the number of accepted jobs."""
    samples: list[Sample] = []
    accepted = 0
    began = sampled_at = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        due = int((now - began + BURST_SECONDS) * rate) - accepted
        if due > 0:
            accepted += len(load.post(due)["ids"])
        if time.monotonic() - sampled_at >= SAMPLE_SECONDS:
            sampled_at += SAMPLE_SECONDS
            samples.append({**system.memory_bytes(), **counted(system)})
        time.sleep(max(0.0, now + BURST_SECONDS - time.monotonic()))
    return samples, accepted


def thirds(samples: list[Sample], name: str) -> tuple[float, float]:
    """Return the mean of this figure over the middle third of the samples, and over the last third."""
    size = len(samples) // 3
    middle, last = samples[size : 2 * size], samples[-size:]
    return statistics.mean(sample[name] for sample in middle), statistics.mean(sample[name] for sample in last)


def show(samples: list[Sample]) -> list[str]:
    """Print the two tables. Returns the names of the Heimdex processes that grew."""
    rows = [["resident memory, MiB", "start", "middle third", "last third", "change"]]
    grew = []
    counts = {*STREAMS, "jobs", "job_events"}
    for name in samples[0]:
        if name in counts:
            continue
        middle, last = thirds(samples, name)
        change = f"{100 * (last - middle) / middle:+.1f} %"
        rows.append([name, *(f"{each / MIB:.1f}" for each in (samples[0][name], middle, last)), change])
        if name not in {"nats-server", "postgres"} and last > 1.1 * middle and last - middle > 5 * MIB:
            grew.append(name)
    print(report.table("Memory", rows))
    rows = [["messages, rows", "start", "middle third", "last third", "end"]]
    for name in samples[0]:
        if name in counts:
            middle, last = thirds(samples, name)
            rows.append([name, *(f"{each:,.0f}" for each in (samples[0][name], middle, last, samples[-1][name]))])
    print(report.table("Messages and rows", rows))
    return grew


def main() -> int:
    """Run the soak test. Returns the exit code: 0 when no process grew and no job was lost, else 1."""
    options = parse_options()
    environ = {"HEIMDEX_RETENTION_DAYS": str(RETENTION_DAYS), "HEIMDEX_LOG_LEVEL": "warning"}
    with folder("soak") as directory, System(directory, environ=environ) as system, Load(system.port) as load:
        rate = options.rate or maximum_rate(system, load) / 2
        print(f"{rate:.0f} jobs per second for {options.minutes:g} minutes", flush=True)
        samples, accepted = soak(system, load, rate, 60 * options.minutes)
        finished = drained(system)
        statuses = asyncio.run(_count_by_status(system.postgres.url))
        log_lines = system.group.log_lines()
    if len(samples) < 3:
        print("too short to compare: use --minutes 0.5 or more", file=sys.stderr)
        return 1
    grew = show(samples)
    print(
        f"{accepted:,} jobs were accepted; {'all are finished' if finished else 'NOT ALL ARE FINISHED'}; "
        f"jobs by status: {statuses}"
    )
    for line in log_lines[:20]:
        print(f"logged: {line[:300]}")
    for name in grew:
        print(f"GREW: {name}")
    if options.json:
        Path(options.json).write_text(json.dumps({"rate": rate, "accepted": accepted, "samples": samples}))
    return 1 if grew or not finished or set(statuses) - {"completed"} else 0


async def _count_by_status(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT status, count(*) FROM jobs GROUP BY 1")
        return {row[0]: row[1] for row in rows}
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(main())
