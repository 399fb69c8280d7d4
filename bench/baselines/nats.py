"""The floor: the minimum cost of the messages and rows of Heimdex's jobs, without HTTP, validation or other features.

There is a process per role, as in the real system: a submitter, a worker for each stage, a store. They publish, fetch
and acknowledge the same payloads with the same headers on the same streams and consumers, with nats-py only. The store
writes the same rows to the same tables, in batches, and acknowledges after the commit.

    python -m bench.baselines.nats ROLE          runs one of these processes; `Floor` starts them
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import nats
import nats.errors
import psutil  # type: ignore[import-untyped]
import uvloop
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from uuid_utils import uuid7

from bench.support import queue_state, report
from bench.support.payloads import Template, templates
from bench.support.processes import ByProcess, Servers, spent_between
from heimdex_contracts import streams, subjects
from heimdex_contracts.lifecycle import snapshot
from heimdex_contracts.mock_process import PIPELINES
from heimdex_contracts.pipelines import collect
from heimdex_contracts.runtime import logs
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.settings import Settings
from heimdex_status_store.database import migrate

STAGE_BATCH = 100
STORE_BATCH = 500
#: The submitter's maximum number of publishes in flight: as many as the load generator has HTTP connections.
SUBMIT_WINDOW = 16

STAGES = PIPELINES[0].stage_names
NATS_URL, DATABASE_URL = "FLOOR_NATS_URL", "FLOOR_DATABASE_URL"

WRITE = """
WITH history AS (
    INSERT INTO job_events (job_id, step, attempt, run, kind, stage, at,
                            ended_stage, ended_attempt, started_at, seconds)
    SELECT * FROM unnest($10::uuid[], $11::int[], $12::int[], $13::int[], $14::text[], $15::text[], $16::timestamptz[],
                         $17::text[], $18::int[], $19::timestamptz[], $20::float8[])
    ON CONFLICT DO NOTHING
)
INSERT INTO jobs AS old (id, type, run, step, attempt, progress, status, stage, result,
                         created_at, updated_at, message)
SELECT id, 'mock_process', 1, step, 0, progress, status, stage, result, created_at, updated_at, message
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::text[], $6::json[], $7::timestamptz[], $8::timestamptz[],
            $9::json[]) AS new (id, step, progress, status, stage, result, created_at, updated_at, message)
ON CONFLICT (id) DO UPDATE SET step = EXCLUDED.step, progress = EXCLUDED.progress, status = EXCLUDED.status,
    stage = EXCLUDED.stage, result = EXCLUDED.result, updated_at = EXCLUDED.updated_at, message = EXCLUDED.message
WHERE EXCLUDED.step > old.step
"""


async def _publish(js: JetStreamContext, template: Template, job_id: str, expected: int) -> None:
    await js.publish(
        f"heimdex.jobs.{template.token}.{job_id}",
        template.payload(job_id),
        headers=template.headers(job_id, expected),
    )


async def submit(js: JetStreamContext) -> None:
    """Read numbers from stdin, one per line. For each, publish that many jobs and print a line when they are stored."""
    first = templates()[0]
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        remaining = iter(range(int(line)))

        async def publish_in_turn(remaining: Iterator[int] = remaining) -> None:
            for _ in remaining:
                await _publish(js, first, str(uuid7()), 0)

        await asyncio.gather(*(publish_in_turn() for _ in range(SUBMIT_WINDOW)))
        print("stored", flush=True)


async def work(js: JetStreamContext, stage: str) -> None:
    """Fetch the jobs that are due at this stage, publish the hand-over of each, then acknowledge it."""
    subscription = await js.pull_subscribe_bind(durable=stage, stream=subjects.JOBS)
    following = templates()[STAGES.index(stage) + 1]

    async def hand_over(msg: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>...
        await _publish(js, following, msg.subject[-36:], int(msg.reply.split(".")[5]))
        await msg.ack()

    while True:
        try:
            fetched = await subscription.fetch(STAGE_BATCH, timeout=5)
        except (nats.errors.TimeoutError, TimeoutError):
            continue
        await asyncio.gather(*map(hand_over, fetched))


async def store(js: JetStreamContext) -> None:
    """Write a row of the history for each message, and the job's row for the newest message of each job."""
    connection = await asyncpg.connect(os.environ[DATABASE_URL])
    subscription = await js.pull_subscribe_bind(durable=subjects.STATUS_STORE, stream=subjects.JOBS)
    steps = {template.token: template for template in templates()}
    while True:
        try:
            fetched = await subscription.fetch(STORE_BATCH, timeout=5)
        except (nats.errors.TimeoutError, TimeoutError):
            continue
        events = [(msg.subject[-36:], steps[msg.subject[13:-37]], msg.data.decode()) for msg in fetched]
        await connection.execute(WRITE, *_job_columns(events), *_event_columns(events))
        for msg in fetched:
            await msg.ack()


_Event = tuple[str, Template, str]


def _job_columns(events: list[_Event]) -> list[list[object]]:
    newest: dict[str, _Event] = {}
    for event in events:
        known = newest.get(event[0])
        if known is None or event[1].step > known[1].step:
            newest[event[0]] = event
    rows = []
    for job_id, template, text in sorted(newest.values(), key=lambda event: event[0]):
        state = snapshot(template.message)
        result = None if state.result is None else RESULT
        message = text if result is None else None
        rows.append(
            (
                job_id,
                state.step,
                state.progress,
                state.status,
                state.stage,
                result,
                state.created_at,
                state.updated_at,
                message,
            )
        )
    return [list(column) for column in zip(*rows, strict=True)]


RESULT = '{"stages_completed": ["extracting", "analyzing", "indexing"], "total_duration_seconds": 0.012345}'


def _event_columns(events: list[_Event]) -> list[list[object]]:
    rows = []
    for job_id, template, _ in events:
        message = template.message
        ended = message.finished[-1] if message.finished else None
        kind = "completed" if template.stage is None else "handed_over" if ended else "submitted"
        rows.append(
            (
                *(job_id, template.step, 0, 1, kind, message.stage, message.at),
                *((ended.stage, ended.attempt, ended.started_at, ended.seconds) if ended else (None,) * 4),
            )
        )
    return [list(column) for column in zip(*rows, strict=True)]


async def role(name: str) -> None:
    """Run the process of this role until SIGTERM."""
    client = await nats.connect(os.environ[NATS_URL])
    js = client.jetstream(timeout=30)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    if name == "submitter":
        await submit(js)
    elif name == "status-store":
        await store(js)
    else:
        await work(js, name)


async def _prepare(nats_url: str, database_url: str) -> None:
    """Create the same streams, consumers and tables as Heimdex."""
    log = logs.configure("warning", "bench")
    broker = Broker(Settings(nats_url=nats_url), "bench", log)
    await broker.connect()
    required_streams = streams.for_stages(collect(PIPELINES).stage_names, Settings().ack_wait_seconds)
    await Topology(broker, required_streams, 1, log).ensure()
    await broker.close()
    connection = await asyncpg.connect(database_url)
    await migrate(connection)
    await connection.close()


class Floor(Servers):
    """The floor's processes, with their own NATS and Postgres servers; a context manager."""

    def __init__(self, directory: Path, sync: str = "default", replicas: int = 1) -> None:
        super().__init__(directory, sync)
        self._replicas = replicas
        self._jobs = 0

    def __enter__(self) -> "Floor":
        super().__enter__()
        try:
            asyncio.run(_prepare(self.nats.url, self.postgres.url))
            self._environ = {NATS_URL: self.nats.url, DATABASE_URL: self.postgres.url}
            for name in ("status-store", *(stage for stage in STAGES for _ in range(self._replicas))):
                self.group.start(name, [sys.executable, "-m", __name__, name], self._environ)
            self._submitter = Submitter(self, self._environ)
        except BaseException:
            self.close()
            raise
        return self

    def run(self, jobs: int) -> report.Figures:
        """Run this many jobs. Returns the jobs per second, and the CPU seconds per 1,000 jobs by role.

        The submitter's name is `gateway`, because it takes its place. Raises RuntimeError when a job is not completed.
        """
        before, began = self._all_cpu(), time.perf_counter()
        self._submitter.submit(jobs)
        queue_state.wait_until_empty(self.nats.url)
        seconds = time.perf_counter() - began
        spent = {name: 1000 * each / jobs for name, each in spent_between(before, self._all_cpu()).items()}
        self._jobs += jobs
        queue_state.check_completed(self.postgres.url, self._jobs)
        return {"jobs_per_second": jobs / seconds, "cpu": {**spent, "sum": sum(spent.values())}}

    def close(self) -> None:
        """Stop the submitter, the other processes and the servers."""
        if hasattr(self, "_submitter"):
            self._submitter.close()
        super().close()

    def _all_cpu(self) -> ByProcess:
        return {**self.cpu_seconds(), "gateway": self._submitter.cpu_seconds()}


class Submitter:
    """The submitter's process, which reads from its stdin how many jobs to publish."""

    def __init__(self, floor: Servers, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "submitter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ) | environ,
        )
        self._psutil_process = psutil.Process(self._process.pid)

    def submit(self, jobs: int) -> None:
        """Publish this many jobs, and return when they are stored. Raises RuntimeError when the process has ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"%d\n" % jobs)
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the floor's submitter ended")

    def cpu_seconds(self) -> float:
        """Return the user and system time of the process since its start."""
        times = self._psutil_process.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """Terminate the process and wait until it has ended."""
        self._process.terminate()
        self._process.wait(10)


if __name__ == "__main__":
    uvloop.run(role(sys.argv[1]))
