"""The live stream before its first byte: what stands in the way is raised, and whoever leaves leaves nothing open."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from litestar import Request

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.broker import Broker
from heimdex_gateway import events
from heimdex_gateway.database import DatabaseUnavailable
from heimdex_gateway.reads import Unanswerable
from heimdex_gateway.routes.streaming import EventStream
from heimdex_gateway.service import Gateway
from heimdex_gateway.watching import Watches

JOB = "00000000-0000-4000-8000-000000000000"


class Nats:
    """Both the broker and its client; counts the subscriptions that are open. Its streams hold nothing."""

    connected = True

    def __init__(self, swallows: bool = False) -> None:
        self.nc = self
        self.on_reconnect: list[Callable[[], Any]] = []
        self.subscriptions = 0
        self._swallows = swallows

    async def subscribe(self, subject: str, cb: Any) -> "Nats":
        self.subscriptions += 1
        return self

    async def unsubscribe(self) -> None:
        self.subscriptions -= 1

    async def flush(self, timeout: float) -> None:
        if self._swallows:
            raise TimeoutError

    async def next_message(self, *_: Any) -> None:
        return None


class Database:
    def __init__(self, *, away: bool = False) -> None:
        self._away = away

    async def history(self, job_id: str) -> list[Any]:
        if self._away:
            raise DatabaseUnavailable("gone since the first look")
        return []


def gateway_of(nats: Nats, database: Database) -> Gateway:
    watches = Watches(cast(Broker, nats))
    return cast(Gateway, SimpleNamespace(broker=nats, watches=watches, database=database))


async def test_a_postgres_that_went_away_after_the_first_look_is_raised_before_the_stream_begins() -> None:
    nats = Nats()
    with pytest.raises(DatabaseUnavailable):
        async with events.live(gateway_of(nats, Database(away=True)), JOB, None):
            raise AssertionError("it began")
    assert nats.subscriptions == 0


async def test_a_nats_that_answers_nothing_is_raised_before_the_stream_begins() -> None:
    nats = Nats(swallows=True)
    with pytest.raises(Unanswerable, match="NATS"):
        async with events.live(gateway_of(nats, Database()), JOB, None):
            raise AssertionError("it began")
    assert nats.subscriptions == 0


async def test_an_interruption_ends_a_stream_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CATCH_UP_SECONDS", 0.0)
    nats = Nats()
    gateway = gateway_of(nats, Database())
    async with events.live(gateway, JOB, None) as pieces:
        gateway.watches.interrupt()
        assert [piece async for piece in pieces] == [b"retry: 1000\n\n"]
    assert nats.subscriptions == 0


@pytest.mark.parametrize("leaves", ["before the head", "after it"])
async def test_a_caller_who_leaves_before_the_first_piece_closes_what_was_opened(leaves: str) -> None:
    sent: list[str] = []
    source = AsyncExitStack()
    source.callback(sent.append, "closed")

    async def pieces() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()  # nothing happens in this job
        yield b""

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if leaves == "before the head":
            raise BrokerUnavailable("any error")
        sent.append(message["type"])

    respond = EventStream(pieces(), source).to_asgi_response(None, cast(Request[Any, Any, Any], None))
    if leaves == "before the head":
        with pytest.raises(BrokerUnavailable):
            await respond({}, receive, send)
    else:
        await respond({}, receive, send)
    assert sent[-1] == "closed"
