"""Measures live streams, batches and delayed jobs.

    python -m bench.scenarios.streams_and_batches [--streams N] [--seconds S] [--runs N] [--json FILE]

It measures four things:

- The CPU and memory that open live streams of idle jobs cost the gateway, compared with no streams. The runs alternate.
- The delay of an event, also of a tick, from the time at which the worker wrote it (`at`) to its arrival at a client of
  the live stream, while all the idle streams are open. Both times are from this machine's clock.
- The jobs per second of batches, compared with single POSTs over the same number of connections. The runs alternate,
  and the workers and the status store are stopped.
- The time from `run_at` to the start of a delayed job.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import uvloop

from bench.support import report
from bench.support.load import Load
from bench.support.processes import STAGES, System, folder

#: The stages of the watched jobs take 0.4, 0.6 and 0.2 s, so that each publishes some ticks.
TIME_SCALE = "0.2"
BATCH = 1_000
CONNECTIONS = 16
#: The maximum number of streams that are being opened at the same time.
TOGETHER = 50
JOBS_WATCHED = 200
WATCHED_TOGETHER = 10
JOBS_LATER = 200
SPREAD_SECONDS = 10.0


class Caller:
    """A minimal HTTP client that opens a connection per request or stream."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def request(self, method: str, path: str, body: object = None) -> Any:
        """Send a request on a new connection and return the JSON of the response.

        Raises RuntimeError unless the status is 2xx.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        data = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        response = await reader.read()
        writer.close()
        if response[9:10] != b"2":
            raise RuntimeError(f"{method} {path} returned {response[:300]!r}")
        return json.loads(response.partition(b"\r\n\r\n")[2])

    async def listen(self, job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the live stream of a job, and read the head of the response and the first event."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = f"/jobs/{job_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"GET {path} returned {head!r}")
        await reader.readuntil(b"\ndata: ")
        await reader.readline()
        return reader, writer

    async def delays(self, job_id: str) -> list[float]:
        """Follow a job until it completes. Returns the milliseconds from `at` to the arrival here, for each event."""
        reader, writer = await self.listen(job_id)
        delays: list[float] = []
        name = b""
        while name != b"completed":
            line = await reader.readline()
            if line.startswith(b"event: "):
                name = line[7:].strip()
            elif line.startswith(b"data: "):
                now = datetime.now(UTC)
                delays.append((now - datetime.fromisoformat(json.loads(line[6:])["at"])).total_seconds() * 1000)
            elif not line:
                raise RuntimeError(f"the stream of {job_id} ended after {name!r}")
        writer.close()
        return delays


@asynccontextmanager
async def open_streams(caller: Caller, ids: list[str]) -> AsyncIterator[None]:
    """Keep a live stream open for each of these jobs, and read its events.

    Raises RuntimeError when a stream has ended before the context does.
    """
    slots = asyncio.Semaphore(TOGETHER)

    async def listen(job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with slots:
            return await caller.listen(job_id)

    opened = await asyncio.gather(*(listen(job_id) for job_id in ids))
    readers = [asyncio.create_task(reader.read()) for reader, _ in opened]
    try:
        yield
        ended = sum(task.done() for task in readers)
        if ended:
            raise RuntimeError(f"{ended} of {len(ids)} streams ended early")
    finally:
        for task in readers:
            task.cancel()
        for _, writer in opened:
            writer.transport.abort()


async def idle_percent(process: psutil.Process, seconds: float) -> float:
    """Return the CPU use of this process without requests over this many seconds, in percent of a core."""
    await asyncio.sleep(2)
    before, began = process.cpu_times(), time.perf_counter()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return float(100 * spent / (time.perf_counter() - began))


async def streams(port: int, pid: int, options: argparse.Namespace) -> report.Figures:
    """Measure the cost of idle streams, and the delay of events while they are open.

    Returns percent of a core, MiB, and milliseconds; medians of the runs.
    """
    caller, process = Caller(port), psutil.Process(pid)
    ids: list[str] = []
    while len(ids) < options.streams:
        jobs = [{"type": "mock_process", "delay_seconds": 7200}] * min(BATCH, options.streams - len(ids))
        ids += (await caller.request("POST", "/jobs/batch", {"jobs": jobs}))["job_ids"]
    runs: list[report.Figures] = []
    ms: list[float] = []
    for _ in range(options.runs):
        run = {"idle_without": await idle_percent(process, options.seconds), "mib_without": _mib(process)}
        before, began = process.cpu_times(), time.perf_counter()
        async with open_streams(caller, ids):
            after = process.cpu_times()
            run["open_ms"] = 1000 * (after.user + after.system - before.user - before.system) / len(ids)
            run["open_seconds"] = time.perf_counter() - began
            run |= {"idle_with": await idle_percent(process, options.seconds), "mib_with": _mib(process)}
            for _ in range(JOBS_WATCHED // WATCHED_TOGETHER // options.runs + 1):
                watched = [
                    (await caller.request("POST", "/jobs", {"type": "mock_process"}))["job_id"]
                    for _ in range(WATCHED_TOGETHER)
                ]
                for delays in await asyncio.gather(*map(caller.delays, watched)):
                    ms += delays
        runs.append(run)
    # The memory without streams is that of the first run: the process keeps the memory that streams once needed.
    medians = report.median(runs) | {"mib_without": runs[0]["mib_without"]}
    return medians | {"delay_ms": report.spread(ms) | {"max": max(ms)}, "delays": len(ms)}


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 2**20)


async def later(port: int) -> report.Figures:
    """Return the milliseconds from `run_at` to the start of the first attempt, of jobs with different `run_at`."""
    caller = Caller(port)
    first = datetime.now(UTC) + timedelta(seconds=3)
    due = [first + timedelta(seconds=SPREAD_SECONDS * number / JOBS_LATER) for number in range(JOBS_LATER)]
    jobs = [{"type": "mock_process", "run_at": at.isoformat()} for at in due]
    ids = (await caller.request("POST", "/jobs/batch", {"jobs": jobs}))["job_ids"]
    late: list[float] = []
    for job_id, at in zip(ids, due, strict=True):
        job = await caller.request("GET", f"/jobs/{job_id}?wait=60")
        if job["status"] != "completed":
            raise RuntimeError(f"a delayed job did not complete: {job}")
        events = (await caller.request("GET", f"/jobs/{job_id}/events"))["events"]
        started = datetime.fromisoformat(events[1]["ended"]["started_at"])
        late.append((started - at).total_seconds() * 1000)
    return {"later_ms": report.spread(late) | {"min": min(late), "max": max(late)}}


def batches(directory: Path, options: argparse.Namespace) -> report.Figures:
    """Return the jobs per second, and the gateway's CPU milliseconds per job, of batches and of single POSTs."""
    runs: list[report.Figures] = []
    with System(directory) as system, Load(system.port, CONNECTIONS) as load:
        system.group.stop(*STAGES, "status-store")
        process = psutil.Process(system.group.pid("gateway"))
        load.post(500)
        load.batch(2, BATCH)

        def measure_posts(name: str, post: Any, *arguments: int) -> report.Figures:
            before = process.cpu_times()
            sample = post(*arguments)
            after, jobs = process.cpu_times(), len(sample["ids"])
            cpu = after.user + after.system - before.user - before.system
            return {f"{name}_per_second": jobs / sample["seconds"], f"{name}_cpu_ms": 1000 * cpu / jobs}

        for _ in range(options.runs):
            run = measure_posts("single", load.post, 4000) | measure_posts("batch", load.batch, 2 * CONNECTIONS, BATCH)
            runs.append(run | {"batch_ratio": run["batch_per_second"] / run["single_per_second"]})
    return report.median(runs)


def measure(directory: Path, options: argparse.Namespace) -> report.Figures:
    """Run all measurements. Raises RuntimeError when a response is wrong, a stream breaks or a process dies."""
    with ExitStack() as stack:
        system = stack.enter_context(System(directory / "watched", environ={"HEIMDEX_MOCK_TIME_SCALE": TIME_SCALE}))
        figures = uvloop.run(streams(system.port, system.group.pid("gateway"), options))
        figures |= uvloop.run(later(system.port))
    return figures | batches(directory / "batches", options)


def show(figures: report.Figures, options: argparse.Namespace, machine: str) -> str:
    """Return the table of the figures as text."""
    delay, late = figures["delay_ms"], figures["later_ms"]
    rows = [
        [f"{options.streams:,} open streams of idle jobs", "none", "open", "target"],
        ["gateway, % of a core", f"{figures['idle_without']:.2f}", f"{figures['idle_with']:.2f}", "a few"],
        ["gateway, MiB", f"{figures['mib_without']:.0f}", f"{figures['mib_with']:.0f}"],
        ["gateway, CPU ms to open one", "", f"{figures['open_ms']:.2f}"],
        ["an event, from its worker to the client, all streams open", "p50", "p99", "max", "target"],
        [f"{figures['delays']:,} events", *(f"{delay[name]:.1f} ms" for name in ("p50", "p99", "max")), "100 ms"],
        [f"{CONNECTIONS} connections", "single POSTs", f"batches of {BATCH:,}", "ratio", "target"],
        [
            "jobs per second",
            f"{figures['single_per_second']:,.0f}",
            f"{figures['batch_per_second']:,.0f}",
            f"{figures['batch_ratio']:.1f}",
            "5",
        ],
        ["gateway, CPU ms per job", f"{figures['single_cpu_ms']:.3f}", f"{figures['batch_cpu_ms']:.3f}"],
        ["a delayed job, from run_at to its first attempt", "p50", "p99", "max", "target"],
        [f"{JOBS_LATER} jobs", *(f"{late[name]:.1f} ms" for name in ("p50", "p99", "max")), "1,000 ms"],
    ]
    title = f"medians of {options.runs} runs; idle for {options.seconds:g} s each\n{machine}"
    return report.table(title, rows)


def main() -> None:
    """Run the benchmark and print the table.

    Exits with code 1 when a response is wrong, a stream breaks or a process dies; a slow run is never an error.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000, help="live streams that are open at the same time")
    parser.add_argument("--seconds", type=float, default=30, help="length of an idle measurement; two per run")
    parser.add_argument("--runs", type=int, default=3, help="runs over which the medians are taken")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    machine = report.machine()
    try:
        with folder("api") as directory:
            figures = measure(directory, options)
    except RuntimeError as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(show(figures, options, machine))
    report.save(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
