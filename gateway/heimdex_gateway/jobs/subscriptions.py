"""Hears a job's events as they are stored: for a caller that waits for its end, and for the live stream."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.msg import Msg

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.messages import AnyMessage, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker


class Interrupted(Exception):
    """The watch can go on no longer without the risk of a gap: the caller comes again, and resumes."""


class Subscription:
    """The events of one job from the moment of `Subscriptions.open` on."""

    def __init__(self) -> None:
        self._events: deque[AnyMessage | None] = deque()
        self._more = asyncio.Event()
        self._stopped = False

    async def next(self, timeout: float) -> AnyMessage | None:
        """The next event, or None when none came within `timeout` seconds. Raises Interrupted."""
        if not self._events:
            self._more.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._more.wait()
            except TimeoutError:
                return None
        event = self._events.popleft()
        if event is None:
            raise Interrupted
        return event

    def stop_reading(self) -> None:
        """What comes from now on comes after a gap: it is not told. The interruption follows."""
        self._stopped = True

    def interrupt(self) -> None:
        """After what has come already, `next` raises."""
        self._events.append(None)
        self._more.set()

    async def on_stored(self, msg: Msg) -> None:
        """A hand-over or a failed attempt, told by the stream that stored it."""
        subject = subjects.subject_of_stored(msg.subject)
        decode = messages.decode_job if subject.startswith("heimdex.jobs.") else messages.decode_attempt
        with contextlib.suppress(UnusableMessage):
            self._add(decode(subject, msg.data))

    async def on_progress(self, msg: Msg) -> None:
        """A tick, as its worker published it."""
        with contextlib.suppress(UnusableMessage):
            tick = messages.decode_progress(msg.subject, msg.data)
            if self._events and isinstance(self._events[-1], Progress):
                self._events.pop()  # nobody has read it yet: a caller who reads slowly holds one tick, not thousands
            self._add(tick)

    def _add(self, event: AnyMessage) -> None:
        if not self._stopped:
            self._events.append(event)
            self._more.set()


class Subscriptions:
    """All watches of one gateway."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._open: set[Subscription] = set()
        # What was stored while we were away, nobody told us; and the subscriptions hear again before all that is done
        # at a reconnection is. So nothing is heard from the break on, and the callers are sent away, to come again,
        # only when they will be answered: to a browser's EventSource, one error is the end.
        broker.on_disconnect.append(self._on_disconnect)
        broker.on_reconnect.append(self._on_reconnect)

    def _on_disconnect(self) -> None:
        for watch in self._open:
            watch.stop_reading()

    async def _on_reconnect(self) -> None:
        self.interrupt()

    def interrupt(self) -> None:
        """End them all: the gateway stops, or was away from NATS."""
        for watch in self._open:
            watch.interrupt()

    @contextlib.asynccontextmanager
    async def open(self, job_id: str, *, ticks: bool) -> AsyncIterator[Subscription]:
        """Watch one job; once this has begun, nothing that is stored is missed.

        A job has subscriptions of its own, so that a gateway pays for the jobs that somebody watches, not for all.
        Raises BrokerUnavailable.
        """
        watch = Subscription()
        subscriptions = []
        nc = self._broker.nc
        try:
            if not self._broker.connected:
                raise BrokerUnavailable("not connected to NATS")
            self._open.add(watch)
            subscriptions.append(await nc.subscribe(subjects.stored_filter(job_id), cb=watch.on_stored))
            if ticks:
                progress = subjects.progress_subject("*", job_id)
                subscriptions.append(await nc.subscribe(progress, cb=watch.on_progress))
            await nc.flush(2)
            yield watch
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailable(f"NATS did not take a subscription: {error}") from error
        finally:
            self._open.discard(watch)
            for subscription in subscriptions:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()
