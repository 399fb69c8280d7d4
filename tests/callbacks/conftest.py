"""Fixtures of the tests of callbacks: a system whose gateways may call loopback, and a receiver there."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.sender import Answer, Poster
from heimdex_callbacks.url import parse_url
from heimdex_contracts.runtime.outbound.address_policy import Allowed
from tests.callbacks.tries import END, Post
from tests.harness.receiver import SECRET, Receiver
from tests.harness.services import System


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Answers 204 unless told otherwise."""
    with Receiver() as made:
        yield made


@pytest_asyncio.fixture
async def post() -> AsyncIterator[Post]:
    """Makes a try to a URL, with loopback allowed."""
    resolver = Resolver(1)
    poster = Poster([SECRET], Allowed(["127.0.0.0/8"]), resolver, 10)

    async def make(url: str) -> Answer:
        return await poster.post(parse_url(url), END)

    yield make
    await poster.close()
    resolver.close()


@pytest.fixture
def calling(system: System) -> System:
    """The services with callbacks enabled; none is started yet."""
    system.env |= {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.0/8"}
    return system


@pytest.fixture
def died(scratch: Path, system: System) -> Path:
    """The file that a launcher makes when it dies at its crash point."""
    path = scratch / "died"
    system.env["TEST_DIED"] = str(path)
    return path
