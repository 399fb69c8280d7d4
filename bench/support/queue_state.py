"""Asks nats-server how far the queue is: when every job has ended and is recorded, and what each stage has done."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import nats
from nats.aio.client import Client

JOBS = "HEIMDEX_JOBS"
POLL_SECONDS = 0.02

_T = TypeVar("_T")


def ask(url: str, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """Run `work` with a connection of its own."""

    async def connected() -> _T:
        client = await nats.connect(url.split(","))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(connected())


async def api(client: Client, call: str) -> dict[str, Any]:
    """One question to `$JS.API.<call>`. Raises RuntimeError for an error."""
    reply = await client.request(f"$JS.API.{call}", b"", timeout=10)
    answer: dict[str, Any] = json.loads(reply.data)
    if "error" in answer:
        raise RuntimeError(f"{call}: {answer['error']['description']}")
    return answer


def wait_until_empty(url: str, stream: str = JOBS, seconds: float = 600) -> None:
    """Until the stream holds no message: every job has ended and is recorded. Raises RuntimeError after `seconds`."""

    async def wait(client: Client) -> None:
        deadline = time.monotonic() + seconds
        while (left := (await api(client, f"STREAM.INFO.{stream}"))["state"]["messages"]) > 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{stream} still holds {left} messages after {seconds:g} s: jobs are not completed")
            await asyncio.sleep(POLL_SECONDS)

    ask(url, wait)


def wait_for_consumer(url: str, stream: str, consumer: str, seconds: float = 60) -> None:
    """Until this consumer exists. Raises RuntimeError after `seconds`."""

    async def wait(client: Client) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                await api(client, f"CONSUMER.INFO.{stream}.{consumer}")
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_SECONDS)

    ask(url, wait)


def acknowledged(url: str, consumers: tuple[str, ...]) -> dict[str, int]:
    """Messages delivered for the first time and acknowledged, by consumer of HEIMDEX_JOBS, and `published`."""

    async def look(client: Client) -> dict[str, int]:
        found = {"published": (await api(client, f"STREAM.INFO.{JOBS}"))["state"]["last_seq"]}
        for consumer in consumers:
            info = await api(client, f"CONSUMER.INFO.{JOBS}.{consumer}")
            found[consumer] = info["delivered"]["consumer_seq"] - info["num_ack_pending"]
        return found

    return ask(url, look)


def waiting(url: str, consumer: str) -> int:
    """Messages that this consumer has neither delivered nor seen acknowledged."""

    async def look(client: Client) -> int:
        info = await api(client, f"CONSUMER.INFO.{JOBS}.{consumer}")
        return int(info["num_pending"]) + int(info["num_ack_pending"])

    return ask(url, look)


def sql(url: str, statement: str, *arguments: Any, timeout: float = 600) -> list[asyncpg.Record]:
    """Run one statement in Postgres."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement, *arguments, timeout=timeout))
        finally:
            await connection.close()

    return asyncio.run(run())


def script(url: str, statements: str) -> None:
    """Run statements without arguments, as one transaction."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statements, timeout=3600)
        finally:
            await connection.close()

    asyncio.run(run())


def check_completed(database_url: str, jobs: int) -> None:
    """Raises RuntimeError unless the table holds exactly so many jobs, all completed."""
    found = {row[0]: row[1] for row in sql(database_url, "SELECT status, count(*) FROM jobs GROUP BY status")}
    if found != {"completed": jobs}:
        raise RuntimeError(f"{jobs} jobs were accepted, but the table holds {found}")
