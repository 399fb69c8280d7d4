"""The baseline of the gateway: Litestar handlers that only decode the same body and run the same SELECT.

python -m bench.baselines.litestar PORT DATABASE_URL
"""

import sys
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvicorn
from litestar import Litestar, get, post
from litestar.exceptions import NotFoundException
from uuid_utils import uuid7

SELECT = """
SELECT type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at
FROM job_status WHERE id = $1
"""


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    fail_at_stage: str | None = None


class JobAccepted(msgspec.Struct):
    job_id: str


class Job(msgspec.Struct):
    id: str
    status: str
    stage: str | None
    progress: int
    result: dict[str, Any] | None
    error: str | None
    created_at: str
    updated_at: str


def _format_time(at: datetime) -> str:
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def application(database_url: str) -> Litestar:
    pool: asyncpg.Pool

    @get("/readyz", sync_to_thread=False)
    def ready() -> dict[str, bool]:
        return {"ok": True}

    @post("/jobs", status_code=202)
    async def submit(data: JobRequest) -> JobAccepted:
        return JobAccepted(str(uuid7()))

    @get("/jobs/{job_id:str}")
    async def show(job_id: str) -> Job:
        row = await pool.fetchrow(SELECT, job_id)
        if row is None:
            raise NotFoundException
        result = None if row[7] is None else msgspec.json.decode(row[7])
        return Job(job_id, row[5], row[6], row[4], result, row[8], _format_time(row[9]), _format_time(row[10]))

    async def connect() -> None:
        nonlocal pool
        pool = await asyncpg.create_pool(database_url, min_size=0, max_size=10)

    return Litestar([ready, submit, show], on_startup=[connect], logging_config=None, openapi_config=None)


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
    )
