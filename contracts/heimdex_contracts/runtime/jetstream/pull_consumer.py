"""Pulls from a durable consumer with a standing request: without delay when idle, in batches when busy.

A loop of `fetch(batch, timeout)` stalls after idle periods in nats-py 2.16. Here, one subscription stays open, and pull
requests ask the server, without waiting for a response, for as many messages as the owner has free capacity. A request
asks for all free capacity when no messages are pending, and otherwise only once half of the capacity is free, so that a
busy owner does not need a request per message. The server never sends more messages than requested.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec
import nats.errors

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import headers_of, status_of
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.message import metadata_of
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.subjects import NANOSECOND

#: How the server ends a request whose `max_bytes` the next message would exceed.
_NO_ROOM: Final = "Message Size Exceeds MaxBytes"
#: How the server ends a request with `max_bytes` that has brought all of its messages.
_ALL_DELIVERED: Final = "Batch Completed"


class PullConsumer:
    """Pulls from one durable consumer.

    capacity: the number of messages that the owner may hold. The owner calls `release` once for every finished message.
    deliver: called with each message on the event loop; must not block.
    may_ask: while it returns False, no messages are requested; those requested before may still arrive.
    capacity_bytes: the size of all messages that the owner may hold, with their subjects and headers; the owner then
    passes to `release` the sizes of the messages. One message alone may be larger. None: any size.
    """

    def __init__(
        self,
        holder: Holder,
        stream: str,
        durable: str,
        capacity: int,
        ack_wait_seconds: float,
        deliver: Callable[[Delivery], None],
        log: Logger,
        may_ask: Callable[[], bool] = lambda: True,
        capacity_bytes: int | None = None,
    ) -> None:
        # A request must expire before a lease does: the server keeps sending messages to a frozen owner, and each
        # message sent in vain costs its job an attempt.
        self._expires_seconds = min(60.0, ack_wait_seconds / 2)
        # The interval at which the server confirms an idle request.
        self._heartbeat_seconds = self._expires_seconds / 2.5
        self._holder = holder
        self._broker = holder.broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._capacity = capacity
        self._chunk = max(1, capacity // 2)
        self._capacity_bytes = capacity_bytes
        self._chunk_bytes = 0 if capacity_bytes is None else capacity_bytes // 2
        self._deliver = deliver
        self._may_ask = may_ask
        self._log = log.bind(stream=stream, consumer=durable)
        self._inbox = ""
        self._subscription: int | None = None
        self._watch: asyncio.Task[None] | None = None
        self._held = 0
        #: The number of messages requested and not yet delivered.
        self._pending = 0
        self._held_bytes = 0
        #: The bytes that the pending requests may still bring, or a little more: what a request has left after its last
        #: message is subtracted only once none is pending.
        self._pending_bytes = 0
        #: The next message is larger than a request allows.
        self._next_is_large = False
        #: When the server last sent anything, by the monotonic clock.
        self._heard_at = 0.0
        self._stopping = False
        self._retry: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """The number of messages that the owner has not released yet."""
        return self._held

    async def start(self) -> None:
        """Subscribe and request the first messages."""
        self._inbox = self._broker.nc.new_inbox()
        self._broker.on_disconnect.append(self._change_inbox)
        self._subscription = await self._broker.nc.direct_subscribe(self._inbox, self._on_message)
        self._watch = asyncio.create_task(self._watch_requests())
        self.reset()

    async def stop(self) -> None:
        """Stop requesting messages, and return once every message that the server has sent is delivered."""
        self._stopping = True
        if self._watch:
            self._watch.cancel()
        if self._retry:
            self._retry.cancel()
        if self._subscription is not None and self._broker.connected:
            try:
                await self._broker.nc.direct_unsubscribe(self._subscription, timeout=1)
            except (TimeoutError, nats.errors.Error, ConnectionError):
                self._log.debug(
                    "pull_not_drained",
                    message="the pull subscription did not drain: its messages are redelivered after their ack wait",
                )

    def _change_inbox(self) -> None:
        """Use another inbox for each connection: a server that stays up keeps the previous connection's requests."""
        self._inbox = self._broker.nc.new_inbox()
        if self._subscription is not None:
            self._broker.nc.direct_resubscribe(self._subscription, self._inbox)

    def release(self, count: int = 1, size: int = 0) -> None:
        """Report that the owner has finished this many messages. size: of all of them (`Delivery.size`)."""
        self._held -= count
        self._held_bytes -= size
        self._request()

    def reset(self) -> None:
        """Forget pending requests and send a new one: after a reconnection, or when the server has lost a request."""
        self._pending = 0
        self._heard_at = time.monotonic()
        self._request()

    def _request(self) -> None:
        if self._stopping or not self._broker.connected or self._retry or not self._may_ask():
            return
        free = self._capacity - self._held - self._pending
        if free <= 0 or (self._pending > 0 and free < self._chunk):
            return
        limit = {}
        if self._capacity_bytes is not None:
            if self._pending == 0:
                self._pending_bytes = 0
            if self._next_is_large:
                if self._held or self._pending:
                    return
                free = 1
            elif self._capacity_bytes - self._held_bytes - self._pending_bytes >= self._chunk_bytes:
                self._pending_bytes += self._chunk_bytes
                limit = {"max_bytes": self._chunk_bytes}
            else:
                return
            self._next_is_large = False
        self._pending += free
        body = msgspec.json.encode(
            {
                "batch": free,
                "expires": int(self._expires_seconds * NANOSECOND),
                "idle_heartbeat": int(self._heartbeat_seconds * NANOSECOND),
                **limit,
            }
        )
        try:
            self._broker.send(self._subject, body, self._inbox, linger=0)
        except BrokerUnavailable as error:
            self._log.debug(
                "pull_not_sent",
                message="cannot send a pull request: the next one follows after the reconnection",
                error=str(error),
            )

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        self._heard_at = time.monotonic()
        reply_subject = reply.decode(errors="replace")
        metadata = metadata_of(reply_subject)
        if metadata is None:
            if subject == self._inbox.encode():  # ignore the status of a request before the reconnection
                self._on_status(block)
            return
        delivery = Delivery(subject.decode(errors="replace"), reply_subject, data, block, metadata, self._holder)
        self._held += 1
        self._held_bytes += delivery.size
        self._pending = max(0, self._pending - 1)
        self._pending_bytes = max(0, self._pending_bytes - delivery.size)
        self._deliver(delivery)
        if self._pending == 0:
            self._request()

    def _on_status(self, block: bytes) -> None:
        status, description = status_of(block)
        if status in {"", "100"}:  # an idle heartbeat, or not a status of the server
            return
        if status == "409" and description == _ALL_DELIVERED:
            return  # its last message has arrived before
        headers = headers_of(block)
        undelivered = headers.get("Nats-Pending-Messages")
        if undelivered is not None:
            # A request has ended: the server will not deliver its remaining messages.
            self._pending = max(0, self._pending - int(undelivered))
            self._pending_bytes = max(0, self._pending_bytes - int(headers.get("Nats-Pending-Bytes", "0")))
        if status == "409" and description == _NO_ROOM:
            # The next message did not fit into what the request had left: it is for another request, and if it is
            # larger than any request allows, for one without a limit, as soon as nothing else is held.
            self._next_is_large = int(headers.get("Nats-Pending-Bytes", "0")) >= self._chunk_bytes
            self._request()
            return
        if status == "408" and undelivered is not None:
            self._request()
            return
        # The consumer is gone, its leader has moved, or there is no responder: an immediate request would fail again.
        self._log.info("pull_ended", message="the server ended a pull request", status=status, reason=description)
        self._broker.missing()
        self._request_later()

    def _request_later(self) -> None:
        def again() -> None:
            self._retry = None
            self.reset()

        if self._retry is None and not self._stopping:
            self._retry = asyncio.get_running_loop().call_later(0.5, again)

    async def _watch_requests(self) -> None:
        """Send a new request when the server has been silent for longer than its heartbeats allow."""
        while True:
            await asyncio.sleep(self._expires_seconds)
            silent = time.monotonic() - self._heard_at
            if self._pending == 0:
                self._request()  # `may_ask` may have changed to True
            elif silent > 2 * self._expires_seconds + 1 and self._broker.connected:
                self._log.info(
                    "pull_forgotten",
                    message="the server has lost a pull request: sending a new one",
                    silent_seconds=round(silent, 1),
                )
                self.reset()
