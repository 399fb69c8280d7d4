"""Does anything grow? Half an hour, or as long as is asked, of steady load at about half the maximum rate.

    python -m bench.soak [--minutes 30] [--rate JOBS_PER_SECOND] [--json FILE]

Samples each process's memory every 10 s and prints the mean of the middle third beside that of the last third, and how
many messages the streams and how many rows the tables hold. Ended jobs are pruned after three minutes here, at every
round of the pruning, so that the tables too should come to rest (a round is ten minutes: below `--minutes 25` they have
not). Exit code 1 when a job was lost, or when a process of ours grew by more than 10 % and 5 MiB from third to third.
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
#: Jobs that the maximum rate is taken from.
TRIAL = 2_000
RETENTION_DAYS = 3 / (24 * 60)
STREAMS = ("HEIMDEX_JOBS", "HEIMDEX_ATTEMPTS", "HEIMDEX_PROGRESS", "HEIMDEX_UNUSABLE")
MIB = 1024 * 1024

#: Bytes by process, and counts by stream and table.
Sample = dict[str, float]


def options() -> argparse.Namespace:
    """For how long, how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, help="jobs a second; by default half of what a trial shows")
    parser.add_argument("--json", metavar="FILE", help="write the samples there")
    return parser.parse_args()


def ask(nats_url: str, call: str) -> dict[str, Any]:
    """One request to JetStream's API."""

    async def request() -> dict[str, Any]:
        nc = Client()
        await nc.connect(nats_url)
        try:
            answer: dict[str, Any] = json.loads((await nc.request(f"$JS.API.{call}", b"", timeout=30)).data)
            return answer
        finally:
            await nc.close()

    return asyncio.run(request())


def counted(system: System) -> Sample:
    """Messages by stream, rows by table."""

    async def rows() -> Sample:
        connection = await asyncpg.connect(system.postgres.url)
        try:
            return {
                table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("jobs", "job_events")
            }
        finally:
            await connection.close()

    found = {name: float(ask(system.nats.url, f"STREAM.INFO.{name}")["state"]["messages"]) for name in STREAMS}
    return found | asyncio.run(rows())


def drained(system: System, seconds: float = 120) -> bool:
    """Whether the stream came to hold nothing: every job has ended and is recorded."""
    deadline = time.monotonic() + seconds
    while ask(system.nats.url, "STREAM.INFO.HEIMDEX_JOBS")["state"]["messages"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def maximum_rate(system: System, load: Load) -> float:
    """Jobs a second, from the first POST to the last record; the second trial counts, the first one warms up."""
    for _ in range(2):
        began = time.monotonic()
        load.post(TRIAL)
        if not drained(system):
            raise RuntimeError("the trial's jobs did not end")
        rate = TRIAL / (time.monotonic() - began)
    return rate


def soak(system: System, load: Load, rate: float, seconds: float) -> tuple[list[Sample], int]:
    """Samples over this time, and the number of jobs that were accepted."""
    samples: list[Sample] = []
    accepted = 0
    began = sampled_at = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        wanted = int((now - began + BURST_SECONDS) * rate) - accepted
        if wanted > 0:
            accepted += len(load.post(wanted)["ids"])
        if time.monotonic() - sampled_at >= SAMPLE_SECONDS:
            sampled_at += SAMPLE_SECONDS
            samples.append({**system.memory_bytes(), **counted(system)})
        time.sleep(max(0.0, now + BURST_SECONDS - time.monotonic()))
    return samples, accepted


def thirds(samples: list[Sample], name: str) -> tuple[float, float]:
    """The mean over the middle third, and over the last one."""
    size = len(samples) // 3
    middle, last = samples[size : 2 * size], samples[-size:]
    return statistics.mean(one[name] for one in middle), statistics.mean(one[name] for one in last)


def show(samples: list[Sample]) -> list[str]:
    """Print the two tables; returns the names of the processes of ours that grew."""
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
    print(report.table("What is kept", rows))
    return grew


def main() -> int:
    """0 when nothing grew and nothing was lost."""
    wanted = options()
    environ = {"HEIMDEX_RETENTION_DAYS": str(RETENTION_DAYS), "HEIMDEX_LOG_LEVEL": "warning"}
    with folder("soak") as directory, System(directory, environ=environ) as system, Load(system.port) as load:
        rate = wanted.rate or maximum_rate(system, load) / 2
        print(f"{rate:.0f} jobs a second for {wanted.minutes:g} minutes", flush=True)
        samples, accepted = soak(system, load, rate, 60 * wanted.minutes)
        whole = drained(system)
        ends = asyncio.run(_ends(system.postgres.url))
        said = system.group.log_lines()
    if len(samples) < 3:
        print("too short to compare: at least half a minute is needed", file=sys.stderr)
        return 1
    grew = show(samples)
    print(f"{accepted:,} jobs were accepted; {'all have ended' if whole else 'NOT ALL HAVE ENDED'}; rows: {ends}")
    for line in said[:20]:
        print(f"logged: {line[:300]}")
    for name in grew:
        print(f"GREW: {name}")
    if wanted.json:
        Path(wanted.json).write_text(json.dumps({"rate": rate, "accepted": accepted, "samples": samples}))
    return 1 if grew or not whole or set(ends) - {"completed"} else 0


async def _ends(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT status, count(*) FROM jobs GROUP BY 1")
        return {row[0]: row[1] for row in rows}
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(main())
