"""The same three stages in FastStream on JetStream, written as in its documentation, with a status row in Postgres.

    python faststream_jobs.py gateway PORT
    python faststream_jobs.py extracting | analyzing | indexing

A pull subscription handles batches of 100 messages concurrently. A message is acknowledged after its row is written and
its successor is stored. It keeps no history, has no fence for successors and no tracing, and checks only the types of
the body: a small team would write this first.
"""

import asyncio
import os
import sys
from typing import Any

import asyncpg
import msgspec
import uvicorn
import uvloop
from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from litestar import Litestar, get, post
from litestar.exceptions import NotFoundException
from nats.js.api import ConsumerConfig, RetentionPolicy

STAGES = ("extracting", "analyzing", "indexing")
#: The progress of the job, in percent, at the start of each stage.
PROGRESS = {"extracting": 0, "analyzing": 33, "indexing": 83}
STREAM = JStream(name="JOBS", subjects=["jobs.*"], retention=RetentionPolicy.WORK_QUEUE)

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id uuid PRIMARY KEY, type text NOT NULL, status text NOT NULL, stage text, progress smallint NOT NULL,
    result json, error text,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80)
"""
ADVANCE = "UPDATE jobs SET status = 'processing', stage = $2, progress = $3, updated_at = now() WHERE id = $1"
COMPLETE = "UPDATE jobs SET status = 'completed', progress = 100, result = $2, updated_at = now() WHERE id = $1"


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    fail_at_stage: str | None = None


class Job(msgspec.Struct):
    id: str
    status: str
    stage: str | None
    progress: int
    result: dict[str, Any] | None
    error: str | None
    created_at: str
    updated_at: str


async def connect() -> asyncpg.Pool:
    return await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=10)


def broker() -> NatsBroker:
    return NatsBroker(os.environ["NATS_URL"], logger=None)


def gateway(port: int) -> None:
    nats = broker()
    pool: asyncpg.Pool
    from uuid import uuid4

    @get("/readyz", sync_to_thread=False)
    def ready() -> dict[str, bool]:
        return {"ok": True}

    @post("/jobs", status_code=202)
    async def submit(data: JobRequest) -> dict[str, str]:
        job_id = str(uuid4())
        await pool.execute(
            "INSERT INTO jobs (id, type, status, progress) VALUES ($1, $2, 'pending', 0)", job_id, data.type
        )
        message = {"job_id": job_id, "type": data.type, "fail_at_stage": data.fail_at_stage}
        await nats.publish(message, f"jobs.{STAGES[0]}", stream=STREAM.name)
        return {"job_id": job_id}

    @get("/jobs/{job_id:str}")
    async def show(job_id: str) -> Job:
        row = await pool.fetchrow("SELECT * FROM jobs WHERE id = $1", job_id)
        if row is None:
            raise NotFoundException
        result = None if row["result"] is None else msgspec.json.decode(row["result"])
        times = row["created_at"].isoformat(), row["updated_at"].isoformat()
        return Job(job_id, row["status"], row["stage"], row["progress"], result, row["error"], *times)

    async def start() -> None:
        nonlocal pool
        pool = await connect()
        await pool.execute(SCHEMA)
        await nats.start()

    application = Litestar([ready, submit, show], on_startup=[start], logging_config=None, openapi_config=None)
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
    )


async def worker(stage: str) -> None:
    nats = broker()
    pool = await connect()
    following = STAGES[STAGES.index(stage) + 1] if stage != STAGES[-1] else None

    @nats.subscriber(
        f"jobs.{stage}",
        stream=STREAM,
        durable=stage,
        config=ConsumerConfig(max_ack_pending=-1),
        pull_sub=PullSub(batch_size=100),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def run(message: dict[str, Any]) -> None:
        if following is None:
            result = msgspec.json.encode({"stages_completed": STAGES, "total_duration_seconds": 0.0}).decode()
            await pool.execute(COMPLETE, message["job_id"], result)
            return
        await pool.execute(ADVANCE, message["job_id"], following, PROGRESS[following])
        await nats.publish(message, f"jobs.{following}", stream=STREAM.name)

    await FastStream(nats, logger=None).run()


if __name__ == "__main__":
    if sys.argv[1] == "gateway":
        gateway(int(sys.argv[2]))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(worker(sys.argv[1]))
