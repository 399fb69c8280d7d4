"""Reads the state of the queue and of the tables: whether every job is finished and recorded, and the acknowledged and
waiting messages of each consumer.
"""

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


def with_client(url: str, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """Run `work` with a new NATS connection, and return its result. `url` may be comma-separated."""

    async def connected() -> _T:
        client = await nats.connect(url.split(","))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(connected())


async def api(client: Client, call: str) -> dict[str, Any]:
    """Send a request to `$JS.API.<call>` and return the decoded response. Raises RuntimeError for an error response."""
    message = await client.request(f"$JS.API.{call}", b"", timeout=10)
    response: dict[str, Any] = json.loads(message.data)
    if "error" in response:
        raise RuntimeError(f"{call}: {response['error']['description']}")
    return response


def wait_until_empty(url: str, stream: str = JOBS, seconds: float = 600) -> None:
    """Wait until the stream is empty: every job is in a terminal state and recorded.

    Raises RuntimeError after `seconds`.
    """

    async def wait(client: Client) -> None:
        deadline = time.monotonic() + seconds
        while (left := (await api(client, f"STREAM.INFO.{stream}"))["state"]["messages"]) > 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{stream} still has {left} messages after {seconds:g} s: jobs are not completed")
            await asyncio.sleep(POLL_SECONDS)

    with_client(url, wait)


def wait_for_consumer(url: str, stream: str, consumer: str, seconds: float = 60) -> None:
    """Wait until this consumer exists. Raises RuntimeError after `seconds`."""

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

    with_client(url, wait)


def acknowledged(url: str, consumers: tuple[str, ...]) -> dict[str, int]:
    """Return the number of acknowledged deliveries by consumer of HEIMDEX_JOBS.

    The key `published` has the number of messages that were published to the stream.
    """

    async def read(client: Client) -> dict[str, int]:
        counts = {"published": (await api(client, f"STREAM.INFO.{JOBS}"))["state"]["last_seq"]}
        for consumer in consumers:
            info = await api(client, f"CONSUMER.INFO.{JOBS}.{consumer}")
            counts[consumer] = info["delivered"]["consumer_seq"] - info["num_ack_pending"]
        return counts

    return with_client(url, read)


def waiting(url: str, consumer: str) -> int:
    """Return the number of messages that this consumer has not delivered yet, or whose acknowledgement is pending."""

    async def read(client: Client) -> int:
        info = await api(client, f"CONSUMER.INFO.{JOBS}.{consumer}")
        return int(info["num_pending"]) + int(info["num_ack_pending"])

    return with_client(url, read)


def undelivered(url: str, consumer: str) -> int:
    """Return the number of messages that this consumer has never delivered."""

    async def read(client: Client) -> int:
        return int((await api(client, f"CONSUMER.INFO.{JOBS}.{consumer}"))["num_pending"])

    return with_client(url, read)


def sql(url: str, statement: str, *arguments: Any, timeout: float = 600) -> list[asyncpg.Record]:
    """Run one statement in Postgres on a new connection, and return its rows."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement, *arguments, timeout=timeout))
        finally:
            await connection.close()

    return asyncio.run(run())


def script(url: str, statements: str) -> None:
    """Run several statements without arguments in Postgres, as one transaction."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statements, timeout=3600)
        finally:
            await connection.close()

    asyncio.run(run())


def check_completed(database_url: str, jobs: int) -> None:
    """Raise RuntimeError unless the table has exactly this many jobs, all completed."""
    counts = {row[0]: row[1] for row in sql(database_url, "SELECT status, count(*) FROM jobs GROUP BY status")}
    if counts != {"completed": jobs}:
        raise RuntimeError(f"{jobs} jobs were accepted, but the table has {counts}")
