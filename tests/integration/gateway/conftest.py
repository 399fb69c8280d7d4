"""Fixtures for the gateway's queries against a real Postgres."""

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from heimdex_gateway.jobs.repository import Database


@pytest_asyncio.fixture
async def gateway(connection: asyncpg.Connection, database_url: str) -> AsyncIterator[Database]:
    """The gateway's connection to a database with the current schema."""
    database = Database(database_url)
    yield database
    await database.close()
