"""A standing pull request on a durable consumer: prompt when idle, in batches when busy, never more than asked for.

A loop of `fetch(batch, timeout)` stalls after idleness in nats-py 2.16; so one subscription stays open and the
server is asked, without waiting for an answer, for as many messages as the owner has room for. It is asked for all
free room when nothing is asked for, and otherwise only when half of the room has come free, so that a busy owner
does not pay a request a message.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
import nats.errors

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import headers_of, status_of
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.message import metadata_of
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.subjects import NANOSECOND


class PullConsumer:
    """Pulls from one durable. `deliver` is called with each message on the event loop and must not block.

    The owner calls `release` once for every message that it has done with. may_ask: while it is false, nothing more is
    asked for; what was asked for before may still come.
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
    ) -> None:
        # A request must not outlive a lease: while its owner is frozen, the server goes on sending to it, and each
        # message that is swallowed so costs its job an attempt.
        self._expires_seconds = min(60.0, ack_wait_seconds / 2)
        # How often the server says on an idle request that it still has it.
        self._heartbeat_seconds = self._expires_seconds / 2.5
        self._holder = holder
        self._broker = holder.broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._capacity = capacity
        self._chunk = max(1, capacity // 2)
        self._deliver = deliver
        self._may_ask = may_ask
        self._log = log.bind(stream=stream, consumer=durable)
        self._inbox = ""
        self._subscription: int | None = None
        self._watch: asyncio.Task[None] | None = None
        self._held = 0
        self._asked = 0
        self._heard_at = 0.0
        self._stopping = False
        self._retry: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """How many messages the owner has not released yet."""
        return self._held

    async def start(self) -> None:
        """Subscribe and ask for the first messages."""
        self._inbox = self._broker.nc.new_inbox()
        self._broker.on_disconnect.append(self._move)
        self._subscription = await self._broker.nc.direct_subscribe(self._inbox, self._on_message)
        self._watch = asyncio.create_task(self._watch_requests())
        self.reset()

    async def stop(self) -> None:
        """Ask for nothing more, and return when every message that the server had sent by now is delivered."""
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
                    message="the pull subscription did not drain: its messages come back after their ack wait",
                )

    def _move(self) -> None:
        """To another inbox for each connection: a server that lives on keeps what was asked for on the one before."""
        self._inbox = self._broker.nc.new_inbox()
        if self._subscription is not None:
            self._broker.nc.direct_resubscribe(self._subscription, self._inbox)

    def release(self, count: int = 1) -> None:
        """The owner has room for this many more."""
        self._held -= count
        self._ask()

    def reset(self) -> None:
        """Forget what was asked for and ask anew: after a reconnection, or when the request is known to be gone."""
        self._asked = 0
        self._heard_at = time.monotonic()
        self._ask()

    def _ask(self) -> None:
        if self._stopping or not self._broker.connected or self._retry or not self._may_ask():
            return
        room = self._capacity - self._held - self._asked
        if room <= 0 or (self._asked > 0 and room < self._chunk):
            return
        self._asked += room
        body = msgspec.json.encode(
            {
                "batch": room,
                "expires": int(self._expires_seconds * NANOSECOND),
                "idle_heartbeat": int(self._heartbeat_seconds * NANOSECOND),
            }
        )
        try:
            self._broker.send(self._subject, body, self._inbox, linger=0)
        except BrokerUnavailable as error:
            self._log.debug(
                "pull_not_sent",
                message="a pull request could not be sent; the next one follows the reconnection",
                error=str(error),
            )

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        self._heard_at = time.monotonic()
        answer = reply.decode(errors="replace")
        metadata = metadata_of(answer)
        if metadata is None:
            if subject == self._inbox.encode():  # not of a request before the reconnection
                self._on_status(block)
            return
        self._held += 1
        self._asked = max(0, self._asked - 1)
        self._deliver(Delivery(subject.decode(errors="replace"), answer, data, block, metadata, self._holder))
        if self._asked == 0:
            self._ask()

    def _on_status(self, block: bytes) -> None:
        status, description = status_of(block)
        if status in {"", "100"}:  # an idle heartbeat, or no word of the server's
            return
        pending = headers_of(block).get("Nats-Pending-Messages")
        if pending is not None:
            # The end of one request: what it still had to deliver is no longer asked for.
            self._asked = max(0, self._asked - int(pending))
        if status == "408" and pending is not None:
            self._ask()
            return
        # The consumer is gone, its leader moved, or nobody listens: asking at once would only spin.
        self._log.info("pull_ended", message="the server ended a pull request", status=status, reason=description)
        self._broker.missing()
        self._ask_later()

    def _ask_later(self) -> None:
        def again() -> None:
            self._retry = None
            self.reset()

        if self._retry is None and not self._stopping:
            self._retry = asyncio.get_running_loop().call_later(0.5, again)

    async def _watch_requests(self) -> None:
        """Ask anew when the server has been silent for longer than its heartbeats allow."""
        while True:
            await asyncio.sleep(self._expires_seconds)
            silent = time.monotonic() - self._heard_at
            if self._asked == 0:
                self._ask()  # where it might not before
            elif silent > 2 * self._expires_seconds + 1 and self._broker.connected:
                self._log.info(
                    "pull_forgotten",
                    message="the server forgot a pull request: asking again",
                    silent_seconds=round(silent, 1),
                )
                self.reset()
