"""One attempt to call a receiver on loopback, without any service around it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.callback_attempts import Post, sending
from tests.support.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Answers 204 unless `answers` is set."""
    with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def post() -> AsyncIterator[Post]:
    """Makes one attempt to call a URL, with loopback allowed."""
    async with sending() as make:
        yield make
