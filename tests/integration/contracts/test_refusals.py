"""After any `-ERR` of a server, the client reconnects as soon as the server accepts it."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from heimdex_contracts.runtime.jetstream.client import RECONNECT_SECONDS
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.settings import Settings
from tests.integration.contracts.test_lost_links import answers, port
from tests.support.links import Link
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer, reload_nats
from tests.support.waiting import eventually

#: Each that nats-server (2.11 to 2.15) ends a connection with, some of them not a client's.
ENDING = (
    "Account Authentication Expired",
    "Authentication Timeout",
    "Authorization Violation",
    "Connection throttling is active. Please try again later.",
    "Failed Account Registration",
    "Maximum Payload Violation",
    "Secure Connection - TLS Required",
    "Stale Connection",
    "Unknown Protocol Operation",
    "User Authentication Expired",
    "User Authentication Revoked",
    "attempted to connect to gateway port",
    "attempted to connect to leaf node port",
    "attempted to connect to route port",
    "cluster name from remote server conflicts",
    "invalid client protocol",
    "maximum account active connections exceeded",
    "maximum connections exceeded",
    "maximum control line exceeded",
    "maximum subscriptions exceeded",
    "no responders requires headers support",
    "Server Shutdown",
    "something that a later version says",
)
TRANSIENT = (
    'Permissions Violation for Publish to "x"',
    'Permissions Violation for Publish with Reply of "x"',
    'Permissions Violation for Subscription to "x" using queue "q"',
    'Permissions Violation for Subscription to "x" (sid "7")',
    "Invalid Subject",
    "Invalid Publish Subject",
)


def err(text: str) -> bytes:
    return f"-ERR '{text}'".encode()


@pytest_asyncio.fixture
async def link(nats: NatsServer) -> AsyncIterator[Link]:
    async with Link(port(nats)) as link:
        yield link


@pytest_asyncio.fixture
async def linked(link: Link, journal: RecordingLogger) -> AsyncIterator[Broker]:
    """A broker whose only way to the server is the link; not connected yet."""
    broker = Broker(Settings(nats_url=link.url), "linked", cast("Any", journal))
    yield broker
    await broker.close()


@pytest.mark.parametrize("closes", [True, False], ids=["and closes", "and does not close"])
async def test_the_client_reconnects_after_each_error_that_ends_the_connection(
    link: Link, linked: Broker, journal: RecordingLogger, closes: bool
) -> None:
    await linked.connect()
    for number, text in enumerate(ENDING, start=1):
        # Not so fast that it waits longer and longer, which the next tests are about.
        linked.nc.options["reconnect_time_wait"] = 0.01
        link.say(err(text), close=closes)
        await eventually(lambda number=number: linked.nc.stats["reconnects"] == number, what=f"connected after {text}")
        await eventually(lambda: answers(linked))
        assert not linked.closed.is_set(), text
    assert [entry["error"] for entry in journal.of("nats_refused")] == [text.lower() for text in ENDING]


@pytest.mark.parametrize("line", [b"-ERR ", b"-ERR", b"-ERR without quotes", b"-ERR '\xff'", b"HELLO"])
async def test_the_client_reconnects_after_malformed_data(link: Link, linked: Broker, line: bytes) -> None:
    await linked.connect()
    linked.nc.options["ping_interval"] = 3600  # pings would find it out, after a while
    link.say(line)
    await eventually(lambda: linked.nc.stats["reconnects"] == 1)
    assert await answers(linked)


async def test_an_error_that_does_not_end_the_connection_is_only_reported(
    link: Link, linked: Broker, journal: RecordingLogger
) -> None:
    await linked.connect()
    for text in TRANSIENT:
        link.say(err(text))
    await eventually(lambda: len(journal.of("nats_error")) == len(TRANSIENT))
    assert await answers(linked)
    assert linked.nc.stats["reconnects"] == 0


async def test_a_server_that_refuses_the_first_connection_is_tried_again(
    link: Link, linked: Broker, journal: RecordingLogger
) -> None:
    link.greetings = [
        err("Authorization Violation"),
        err("maximum connections exceeded"),
        err("invalid client protocol"),
    ]
    await linked.connect()
    assert await answers(linked)
    assert len(journal.of("nats_refused")) == 3


async def test_a_server_that_refuses_a_reconnection_is_tried_again_and_each_reason_is_logged_once(
    link: Link, linked: Broker, journal: RecordingLogger
) -> None:
    await linked.connect()
    reasons = ["authorization violation", "authorization violation", "maximum connections exceeded"]
    link.greetings = [err(reason) for reason in reasons]
    link.cut()
    await eventually(lambda: linked.nc.stats["reconnects"] == 1)
    assert await answers(linked)
    assert [entry["error"] for entry in journal.of("nats_refused")] == list(dict.fromkeys(reasons))
    assert linked.nc.options["reconnect_time_wait"] > RECONNECT_SECONDS, "it waits longer after each refusal"


async def test_a_server_that_begins_with_another_message_than_info_is_tried_again(link: Link, linked: Broker) -> None:
    link.greetings = [b"PING", b"+OK", b"x" * 100_000]
    await linked.connect()
    assert linked.connected
    assert await answers(linked)


async def test_a_wrong_password_is_tried_until_it_is_the_right_one(nats: NatsServer, journal: RecordingLogger) -> None:
    def user(password: str) -> None:
        reload_nats(nats, f"authorization {{ user: heimdex, password: {password} }}")

    user("first")
    async with Link(port(nats)) as link:
        url = link.url.replace("//", "//heimdex:first@")
        broker = Broker(Settings(nats_url=url), "linked", cast("Any", journal))
        await broker.connect()
        user("second")
        # Other clients of NATS give up a server that has refused them twice.
        await eventually(lambda: link.accepted >= 4, what="it is tried again and again")
        assert not broker.connected
        assert "authorization violation" in [entry["error"] for entry in journal.of("nats_refused")]
        user("first")
        await eventually(lambda: answers(broker))
        await broker.close()


async def test_a_client_that_the_server_disconnects_reconnects_once_connections_are_free(
    nats: NatsServer, broker: Broker, journal: RecordingLogger
) -> None:
    reload_nats(nats, "max_connections: -1")
    await eventually(lambda: journal.of("nats_refused"))
    await eventually(lambda: not broker.connected)
    reload_nats(nats, "")
    await eventually(lambda: answers(broker))
    assert not broker.closed.is_set()
