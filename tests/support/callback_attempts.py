"""What a test needs to make one callback attempt without a running system."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.sender import READ_SECONDS, TIMEOUT_SECONDS, Answer, Sender
from heimdex_callbacks.url import parse_url
from heimdex_contracts.messages import Completed
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from tests.support.histories import Writer
from tests.support.receiver import SECRET

#: Makes one callback attempt to a URL and returns its result.
Post = Callable[[str], Awaitable[Answer]]


def completed() -> Completed:
    """Return the terminal event of a job that completed."""
    writer = Writer()
    while writer.finish_stage():
        pass
    assert isinstance(writer.events[-1], Completed)
    return writer.events[-1]


END = completed()


@asynccontextmanager
async def sending(timeout_seconds: float = TIMEOUT_SECONDS, read_seconds: float = READ_SECONDS) -> AsyncIterator[Post]:
    """Open a sender that may call loopback."""
    resolver = Resolver(1)
    sender = Sender([SECRET], AddressPolicy(["127.0.0.0/8"]), resolver, 10, timeout_seconds, read_seconds)

    async def post(url: str) -> Answer:
        return await sender.post(parse_url(url), END)

    try:
        yield post
    finally:
        await sender.close()
        resolver.close()
