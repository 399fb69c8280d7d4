"""Live subscriptions to the stored events of a job, for `wait` requests and for the event stream."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.msg import Msg

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.messages import AnyMessage, Progress
from heimdex_contracts.runtime.backoff import set_within
from heimdex_contracts.runtime.jetstream.connection import Broker


class Interrupted(Exception):
    """The subscription may have missed events. The client must reconnect and resume."""


class Subscription:
    """The events of one job, from the call of `Subscriptions.open` on."""

    def __init__(self) -> None:
        self._events: deque[AnyMessage | None] = deque()
        self._more = asyncio.Event()
        self._stopped = False

    async def next(self, timeout: float) -> AnyMessage | None:
        """The next event, or None if none arrived within `timeout` seconds. Raises Interrupted."""
        if not self._events:
            self._more.clear()
            if not await set_within(self._more, timeout):
                return None
        event = self._events.popleft()
        if event is None:
            raise Interrupted
        return event

    def stop_reading(self) -> None:
        """Ignore all further events, because events before them may be missing. `interrupt` follows."""
        self._stopped = True

    def interrupt(self) -> None:
        """Make `next` raise Interrupted after the events that have already arrived."""
        self._events.append(None)
        self._more.set()

    async def on_stored(self, msg: Msg) -> None:
        """Add a hand-over or a failed attempt, as republished by the stream that stored it."""
        subject = subjects.subject_of_stored(msg.subject)
        decode = messages.decode_job if subject.startswith("heimdex.jobs.") else messages.decode_attempt
        with contextlib.suppress(UnusableMessage):
            self._add(decode(subject, msg.data))

    async def on_progress(self, msg: Msg) -> None:
        """Add a progress tick, as its worker published it."""
        with contextlib.suppress(UnusableMessage):
            tick = messages.decode_progress(msg.subject, msg.data)
            if self._events and isinstance(self._events[-1], Progress):
                self._events.pop()  # not read yet: for a slow reader only the newest tick is kept, not thousands
            self._add(tick)

    def _add(self, event: AnyMessage) -> None:
        if not self._stopped:
            self._events.append(event)
            self._more.set()


class Subscriptions:
    """All subscriptions of one gateway."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._open: set[Subscription] = set()
        self._stopping = False
        # Events stored during a disconnection are missed, and after it the subscriptions receive events before the
        # other reconnect callbacks have run. So events are ignored from the disconnection on. The clients are
        # interrupted only after the reconnection, when their new requests will succeed: a browser's EventSource gives
        # up after one error.
        broker.on_disconnect.append(self._on_disconnect)
        broker.on_reconnect.append(self._on_reconnect)

    def _on_disconnect(self) -> None:
        for subscription in self._open:
            subscription.stop_reading()

    async def _on_reconnect(self) -> None:
        self.interrupt()

    def interrupt(self) -> None:
        """Interrupt all subscriptions: the gateway was disconnected from NATS."""
        for subscription in self._open:
            subscription.interrupt()

    def stop(self) -> None:
        """Interrupt all subscriptions, and each that a request under way still opens: the gateway stops."""
        self._stopping = True
        self.interrupt()

    @contextlib.asynccontextmanager
    async def open(self, job_id: str, *, ticks: bool) -> AsyncIterator[Subscription]:
        """Subscribe to the events of one job. After this has been entered, no event that is stored is missed.

        Each job has NATS subscriptions of its own, so that a gateway pays only for the jobs that somebody watches.
        `ticks`: whether progress ticks are included. Raises BrokerUnavailable.
        """
        subscription = Subscription()
        nats_subscriptions = []
        nc = self._broker.nc
        try:
            if not self._broker.connected:
                raise BrokerUnavailable("not connected to NATS")
            self._open.add(subscription)
            if self._stopping:
                subscription.interrupt()
            nats_subscriptions.append(await nc.subscribe(subjects.stored_filter(job_id), cb=subscription.on_stored))
            if ticks:
                progress = subjects.progress_subject("*", job_id)
                nats_subscriptions.append(await nc.subscribe(progress, cb=subscription.on_progress))
            await nc.flush(2)
            yield subscription
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailable(f"NATS did not accept a subscription: {error}") from error
        finally:
            self._open.discard(subscription)
            for nats_subscription in nats_subscriptions:
                with contextlib.suppress(nats.errors.Error):
                    await nats_subscription.unsubscribe()
