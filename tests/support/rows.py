"""Looks into Postgres as an operator would: rows, history, and what a test does to the server."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
import psutil


async def fetch(database_url: str, query: str, *arguments: Any) -> list[dict[str, Any]]:
    """The rows of one query."""
    connection = await asyncpg.connect(database_url, timeout=20)
    try:
        return [dict(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


async def execute(database_url: str, *statements: str) -> None:
    """One after the other, each in a transaction of its own."""
    connection = await asyncpg.connect(database_url, timeout=20)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def events(database_url: str, job_id: str) -> list[dict[str, Any]]:
    """The job's history in order."""
    return await fetch(
        database_url, "SELECT * FROM job_events WHERE job_id = $1::text::uuid ORDER BY step, attempt", job_id
    )


async def statuses(database_url: str, job_ids: Sequence[str]) -> dict[str, str]:
    """The status in the row of each of these jobs that has one."""
    rows = await fetch(
        database_url, "SELECT id::text, status FROM jobs WHERE id = ANY($1::text[]::uuid[])", list(job_ids)
    )
    return {row["id"]: row["status"] for row in rows}


def signal_tree(pid: int, number: int) -> None:
    """The signal to this process and all that it started: a Postgres is many."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                os.kill(process.pid, number)


def freeze(pid: int) -> None:
    """SIGSTOP to a server and its children."""
    signal_tree(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """SIGCONT."""
    signal_tree(pid, signal.SIGCONT)
