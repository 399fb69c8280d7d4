"""One attempt to call a receiver on loopback, without any service around it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.sender import Answer, Sender
from heimdex_callbacks.url import parse_url
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from tests.support.callback_attempts import END, Post
from tests.support.receiver import SECRET, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Answers 204 unless `answers` is set."""
    with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def post() -> AsyncIterator[Post]:
    """Makes one attempt to call a URL, with loopback allowed."""
    resolver = Resolver(1)
    poster = Sender([SECRET], AddressPolicy(["127.0.0.0/8"]), resolver, 10)

    async def make(url: str) -> Answer:
        return await poster.post(parse_url(url), END)

    yield make
    await poster.close()
    resolver.close()
