"""What the API promises beyond POST and GET: live streams, batches, jobs for later.

    python -m bench.scenarios.streams_and_batches [--streams N] [--seconds S] [--runs N] [--json FILE]

Four figures. What open live streams of jobs that do nothing cost the gateway, beside itself with none, in turn. How
long an event takes from the moment that its worker wrote it (`at`) to a caller of the live stream, ticks too; both on
this machine's clock, and while all those other streams are open. How many jobs a second batches take, beside single
POSTs over as many connections, in turn, the workers and the store resting. How late a job for later starts.
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

#: The stages of the jobs that are watched: 0.4, 0.6 and 0.2 s, so that each tells some ticks.
TIME_SCALE = "0.2"
BATCH = 1_000
CONNECTIONS = 16
#: Streams that are opened at the same time.
TOGETHER = 50
JOBS_WATCHED = 200
WATCHED_TOGETHER = 10
JOBS_LATER = 200
SPREAD_SECONDS = 10.0


class Caller:
    """Speaks just enough HTTP for one connection to the gateway."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """One request on a connection of its own; the answer's JSON. Raises RuntimeError for any status but 2xx."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        data = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = await reader.read()
        writer.close()
        if answer[9:10] != b"2":
            raise RuntimeError(f"{method} {path} answered {answer[:300]!r}")
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    async def listen(self, job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A live stream, after the answer's head and the first event."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = f"/jobs/{job_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"GET {path} answered {head!r}")
        await reader.readuntil(b"\ndata: ")
        await reader.readline()
        return reader, writer

    async def delays(self, job_id: str) -> list[float]:
        """Milliseconds from the writing of each event of this job's to its arrival here, to its end."""
        reader, writer = await self.listen(job_id)
        found: list[float] = []
        name = b""
        while name != b"completed":
            line = await reader.readline()
            if line.startswith(b"event: "):
                name = line[7:].strip()
            elif line.startswith(b"data: "):
                now = datetime.now(UTC)
                found.append((now - datetime.fromisoformat(json.loads(line[6:])["at"])).total_seconds() * 1000)
            elif not line:
                raise RuntimeError(f"the stream of {job_id} ended after {name!r}")
        writer.close()
        return found


@asynccontextmanager
async def open_streams(caller: Caller, ids: list[str]) -> AsyncIterator[None]:
    """Live streams of these jobs, all open; whatever they tell is read."""
    slots = asyncio.Semaphore(TOGETHER)

    async def one(job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with slots:
            return await caller.listen(job_id)

    opened = await asyncio.gather(*(one(job_id) for job_id in ids))
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
    """CPU of this process while nobody asks anything, in percent of a core."""
    await asyncio.sleep(2)
    before, began = process.cpu_times(), time.perf_counter()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return float(100 * spent / (time.perf_counter() - began))


async def streams(port: int, pid: int, wanted: argparse.Namespace) -> report.Figures:
    """Idle streams, and the delay of events while they are open."""
    caller, process = Caller(port), psutil.Process(pid)
    ids: list[str] = []
    while len(ids) < wanted.streams:
        jobs = [{"type": "mock_process", "delay_seconds": 7200}] * min(BATCH, wanted.streams - len(ids))
        ids += (await caller.ask("POST", "/jobs/batch", {"jobs": jobs}))["job_ids"]
    found: list[report.Figures] = []
    ms: list[float] = []
    for _ in range(wanted.runs):
        run = {"idle_without": await idle_percent(process, wanted.seconds), "mib_without": _mib(process)}
        before, began = process.cpu_times(), time.perf_counter()
        async with open_streams(caller, ids):
            after = process.cpu_times()
            run["open_ms"] = 1000 * (after.user + after.system - before.user - before.system) / len(ids)
            run["open_seconds"] = time.perf_counter() - began
            run |= {"idle_with": await idle_percent(process, wanted.seconds), "mib_with": _mib(process)}
            for _ in range(JOBS_WATCHED // WATCHED_TOGETHER // wanted.runs + 1):
                watched = [
                    (await caller.ask("POST", "/jobs", {"type": "mock_process"}))["job_id"]
                    for _ in range(WATCHED_TOGETHER)
                ]
                for delays in await asyncio.gather(*map(caller.delays, watched)):
                    ms += delays
        found.append(run)
    shown = report.median(found) | {"mib_without": found[0]["mib_without"]}  # what was taken for a stream is kept
    return shown | {"delay_ms": report.spread(ms) | {"max": max(ms)}, "delays": len(ms)}


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 2**20)


async def later(port: int) -> report.Figures:
    """Milliseconds from `run_at` to the start of the first attempt, of jobs that are due at different moments."""
    caller = Caller(port)
    first = datetime.now(UTC) + timedelta(seconds=3)
    due = [first + timedelta(seconds=SPREAD_SECONDS * number / JOBS_LATER) for number in range(JOBS_LATER)]
    jobs = [{"type": "mock_process", "run_at": at.isoformat()} for at in due]
    ids = (await caller.ask("POST", "/jobs/batch", {"jobs": jobs}))["job_ids"]
    late: list[float] = []
    for job_id, at in zip(ids, due, strict=True):
        job = await caller.ask("GET", f"/jobs/{job_id}?wait=60")
        if job["status"] != "completed":
            raise RuntimeError(f"a job for later did not complete: {job}")
        events = (await caller.ask("GET", f"/jobs/{job_id}/events"))["events"]
        started = datetime.fromisoformat(events[1]["ended"]["started_at"])
        late.append((started - at).total_seconds() * 1000)
    return {"later_ms": report.spread(late) | {"min": min(late), "max": max(late)}}


def batches(directory: Path, wanted: argparse.Namespace) -> report.Figures:
    """Jobs a second of batches and of single POSTs, and what they cost the gateway."""
    found: list[report.Figures] = []
    with System(directory) as system, Load(system.port, CONNECTIONS) as load:
        system.group.stop(*STAGES, "status-store")
        process = psutil.Process(system.group.pid("gateway"))
        load.post(500)
        load.batch(2, BATCH)

        def jobs_a_second(name: str, ask: Any, *arguments: int) -> report.Figures:
            before = process.cpu_times()
            answer = ask(*arguments)
            after, jobs = process.cpu_times(), len(answer["ids"])
            cpu = after.user + after.system - before.user - before.system
            return {f"{name}_per_second": jobs / answer["seconds"], f"{name}_cpu_ms": 1000 * cpu / jobs}

        for _ in range(wanted.runs):
            run = jobs_a_second("single", load.post, 4000) | jobs_a_second("batch", load.batch, 2 * CONNECTIONS, BATCH)
            found.append(run | {"batch_ratio": run["batch_per_second"] / run["single_per_second"]})
    return report.median(found)


def measure(directory: Path, wanted: argparse.Namespace) -> report.Figures:
    """All of it. Raises RuntimeError for a wrong outcome."""
    with ExitStack() as stack:
        system = stack.enter_context(System(directory / "watched", environ={"HEIMDEX_MOCK_TIME_SCALE": TIME_SCALE}))
        found = uvloop.run(streams(system.port, system.group.pid("gateway"), wanted))
        found |= uvloop.run(later(system.port))
    return found | batches(directory / "batches", wanted)


def show(found: report.Figures, wanted: argparse.Namespace, machine: str) -> str:
    """The table."""
    delay, late = found["delay_ms"], found["later_ms"]
    rows = [
        [f"{wanted.streams:,} open streams of idle jobs", "none", "open", "target"],
        ["gateway, % of a core", f"{found['idle_without']:.2f}", f"{found['idle_with']:.2f}", "a few"],
        ["gateway, MiB", f"{found['mib_without']:.0f}", f"{found['mib_with']:.0f}"],
        ["gateway, CPU ms to open one", "", f"{found['open_ms']:.2f}"],
        ["an event, from its worker to the caller, all of them open", "p50", "p99", "most", "target"],
        [f"{found['delays']:,} events", *(f"{delay[name]:.1f} ms" for name in ("p50", "p99", "max")), "100 ms"],
        [f"{CONNECTIONS} connections", "single POSTs", f"batches of {BATCH:,}", "ratio", "target"],
        [
            "jobs a second",
            f"{found['single_per_second']:,.0f}",
            f"{found['batch_per_second']:,.0f}",
            f"{found['batch_ratio']:.1f}",
            "5",
        ],
        ["gateway, CPU ms a job", f"{found['single_cpu_ms']:.3f}", f"{found['batch_cpu_ms']:.3f}"],
        ["a job for later, from run_at to its first attempt", "p50", "p99", "most", "target"],
        [f"{JOBS_LATER} jobs", *(f"{late[name]:.1f} ms" for name in ("p50", "p99", "max")), "1,000 ms"],
    ]
    title = f"medians of {wanted.runs}; idle for {wanted.seconds:g} s each\n{machine}"
    return report.table(title, rows)


def main() -> None:
    """Prints one table. Exit code 1 for a wrong outcome; a time never is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000, help="live streams that are open at the same time")
    parser.add_argument("--seconds", type=float, default=30, help="of idleness that are measured, a run")
    parser.add_argument("--runs", type=int, default=3, help="runs whose medians are shown")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    wanted = parser.parse_args()
    machine = report.machine()
    try:
        with folder("api") as directory:
            found = measure(directory, wanted)
    except RuntimeError as error:
        print(f"Wrong: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(show(found, wanted, machine))
    report.save(wanted.json, {"machine": machine, **found})


if __name__ == "__main__":
    main()
