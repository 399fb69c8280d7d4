"""Reads rows and history from Postgres as an operator does, and freezes the server."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
import psutil


async def fetch(database_url: str, query: str, *arguments: Any) -> list[dict[str, Any]]:
    """Run one query on a new connection and return its rows."""
    connection = await asyncpg.connect(database_url, timeout=20)
    try:
        return [dict(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


async def execute(database_url: str, *statements: str) -> None:
    """Run the statements one after the other, each in its own transaction."""
    connection = await asyncpg.connect(database_url, timeout=20)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def events(database_url: str, job_id: str) -> list[dict[str, Any]]:
    """Return the history of a job from `job_events`, in order."""
    return await fetch(
        database_url, "SELECT * FROM job_events WHERE job_id = $1::text::uuid ORDER BY step, attempt", job_id
    )


async def statuses(database_url: str, job_ids: Sequence[str]) -> dict[str, str]:
    """Return the status of each of these jobs that has a row."""
    rows = await fetch(
        database_url, "SELECT id::text, status FROM jobs WHERE id = ANY($1::text[]::uuid[])", list(job_ids)
    )
    return {row["id"]: row["status"] for row in rows}


def signal_tree(pid: int, number: int) -> None:
    """Send the signal to this process and its descendants: a Postgres server has many processes."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                os.kill(process.pid, number)


def freeze(pid: int) -> None:
    """Stop a server and its descendants with SIGSTOP."""
    signal_tree(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let a frozen server and its descendants continue, with SIGCONT."""
    signal_tree(pid, signal.SIGCONT)
