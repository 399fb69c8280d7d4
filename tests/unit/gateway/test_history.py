"""The live stream before its first byte: an outage is raised, and a caller who disconnects leaves nothing open."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from litestar import Request
from nats.aio.client import Client
from nats.aio.msg import Msg

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyJobMessage, AnyMessage, AttemptFailed
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_gateway.jobs.history import CATCH_UP_SECONDS, History
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_gateway.jobs.status import StateUnavailable
from heimdex_gateway.jobs.subscriptions import Interrupted, Subscriptions
from heimdex_gateway.routes.sse import EventStream, frames
from tests.support.histories import Writer

JOB = "00000000-0000-4000-8000-000000000000"


class Nats:
    """Stands in for the broker and its client, with empty streams; counts the open subscriptions."""

    connected = True

    def __init__(self, swallows: bool = False) -> None:
        self.nc = self
        self.on_reconnect: list[Callable[[], Any]] = []
        self.on_disconnect: list[Callable[[], None]] = []
        self.subscriptions = 0
        self.hears: list[Callable[[Msg], Awaitable[None]]] = []
        self._swallows = swallows

    async def subscribe(self, subject: str, cb: Any) -> "Nats":
        self.subscriptions += 1
        self.hears.append(cb)
        return self

    async def unsubscribe(self) -> None:
        self.subscriptions -= 1

    async def flush(self, timeout: float) -> None:
        if self._swallows:
            raise TimeoutError

    async def next_message(self, *_: Any) -> None:
        return None

    async def deliver(self, event: AnyJobMessage) -> None:
        """Publish this event as the stream does when it has stored it."""
        subject = f"{subjects.STORED}.jobs.{messages.token(event)}.{event.job_id}"
        await self.hears[0](Msg(Client(), subject, data=messages.encode(event)))


class Database:
    def __init__(self, *past: AnyMessage, away: bool = False) -> None:
        self._past = event_rows(past)
        self._away = away

    async def history(self, job_id: str) -> list[Any]:
        if self._away:
            raise DatabaseUnavailable("gone since the first look")
        return self._past


def handed_over() -> list[Any]:
    """Return a job's first message and its two hand-overs."""
    writer = Writer(JOB)
    while len(writer.events) < 3:
        writer.finish_stage()
    return writer.events


def history_of(
    nats: Nats, database: Database, catch_up_seconds: float = CATCH_UP_SECONDS
) -> tuple[History, Subscriptions]:
    subscriptions = Subscriptions(cast(Broker, nats))
    return History(cast(Broker, nats), cast(Any, database), subscriptions, catch_up_seconds), subscriptions


async def test_a_postgres_outage_after_the_first_read_is_raised_before_the_stream_begins() -> None:
    nats = Nats()
    with pytest.raises(StateUnavailable, match="Postgres"):
        async with history_of(nats, Database(away=True))[0].live(JOB, None):
            raise AssertionError("it began")
    assert nats.subscriptions == 0


async def test_a_nats_server_that_does_not_answer_is_raised_before_the_stream_begins() -> None:
    nats = Nats(swallows=True)
    with pytest.raises(StateUnavailable, match="NATS"):
        async with history_of(nats, Database())[0].live(JOB, None):
            raise AssertionError("it began")
    assert nats.subscriptions == 0


async def test_an_interruption_ends_a_stream_that_has_begun() -> None:
    nats = Nats()
    history, subscriptions = history_of(nats, Database(), catch_up_seconds=0.0)
    async with history.live(JOB, None) as entries:
        subscriptions.interrupt()
        assert [piece async for piece in frames(entries)] == [b"retry: 1000\n\n"]
    assert nats.subscriptions == 0


async def test_a_stream_that_is_opened_while_the_gateway_stops_ends_at_once() -> None:
    """The request was accepted just before the stop: nothing else would end it before the process exits."""
    nats = Nats()
    history, subscriptions = history_of(nats, Database(handed_over()[0]))
    subscriptions.stop()
    async with history.live(JOB, None) as entries, asyncio.timeout(5):
        assert [piece.split(b"\n")[0] async for piece in frames(entries)] == [b"retry: 1000", b"id: 0.0"]
    assert nats.subscriptions == 0


async def test_a_stream_sends_nothing_after_a_lost_connection_and_ends_at_the_reconnection() -> None:
    submitted, missed, heard = handed_over()
    nats = Nats()
    async with history_of(nats, Database())[1].open(JOB, ticks=True) as watch:
        await nats.deliver(submitted)
        for call in nats.on_disconnect:
            call()
        await nats.deliver(missed)  # the subscriptions are back before the work of the reconnection is done
        await nats.deliver(heard)
        assert await watch.next(0.01) == submitted
        assert await watch.next(0.01) is None
        for call in nats.on_reconnect:
            await call()
        with pytest.raises(Interrupted):
            await watch.next(1)


async def test_a_stream_ends_before_the_first_event_after_a_gap() -> None:
    submitted, missed, heard = handed_over()
    nats = Nats()
    async with history_of(nats, Database(submitted))[0].live(JOB, None) as entries:
        await nats.deliver(heard)
        async with asyncio.timeout(5):
            sent = b"".join([piece async for piece in frames(entries)])
    assert b"id: 0.0\n" in sent
    assert b"id: 2.0\n" not in sent
    nats = Nats()
    async with history_of(nats, Database(submitted, missed))[0].live(JOB, (0, 0)) as entries:
        await nats.deliver(heard)
        pieces = frames(entries)
        assert [(await anext(pieces)).split(b"\n")[0] for _ in range(3)] == [b"retry: 1000", b"id: 1.0", b"id: 2.0"]


class StoredAttempts(Nats):
    """Its stream of attempts holds these; nothing of them is recorded yet."""

    def __init__(self, *events: AttemptFailed) -> None:
        super().__init__()
        self._events = events

    async def next_message(self, *position: Any) -> Any:
        stream, _, sequence = position
        if stream != subjects.ATTEMPTS or sequence > len(self._events):
            return None
        event = self._events[sequence - 1]
        subject = subjects.attempt_subject(event.stage, event.job_id)
        return SimpleNamespace(sequence=sequence, subject=subject, data=messages.encode(event))


@pytest.mark.parametrize("lost_first", [True, False])
async def test_of_two_results_of_one_attempt_the_first_counts_before_it_is_recorded_too(lost_first: bool) -> None:
    writer = Writer(JOB)
    writer.fail_attempt()
    submitted, *_, failed = writer.events
    results = [msgspec.structs.replace(failed, lost=lost) for lost in (lost_first, not lost_first)]
    entries = await history_of(StoredAttempts(*results), Database(submitted))[0].entries(JOB)
    assert [row.kind for row in entries] == ["submitted", "attempt_lost" if lost_first else "attempt_failed"]


@pytest.mark.parametrize("leaves", ["before the head", "after it"])
async def test_a_caller_who_disconnects_before_the_first_chunk_closes_the_subscriptions(leaves: str) -> None:
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
