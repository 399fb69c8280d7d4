"""Takes due callbacks from JetStream, makes one attempt at each, publishes its result, and settles the delivery.

The result is published before the delivery is settled, as in a stage worker. If the gateway is killed in between, the
callback is redelivered and attempted once more under the same `webhook-id`. All gateways share one durable consumer.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from heimdex_callbacks.concurrency import MAX_AT_ONCE, ReceiverSlots
from heimdex_callbacks.retry_schedule import RETRY_DELAYS, delay_after
from heimdex_callbacks.sender import Answer, Sender
from heimdex_callbacks.url import UnusableUrl, parse_url
from heimdex_contracts import callbacks, messages, subjects, tracing
from heimdex_contracts.callbacks import (
    CallbackDelivered,
    CallbackFailed,
    CallbackGivenUp,
    CallbackResult,
    CallbackWork,
)
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.leases import Leases
from heimdex_contracts.runtime.jetstream.publish_until_stored import publish_until_stored
from heimdex_contracts.runtime.jetstream.publisher import Envelope
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.process import Process

#: The part of the grace period that is reserved for handing back attempts that have not finished.
HAND_BACK_SECONDS: Final = 1.0


class Dispatcher:
    """Makes the callback attempts of one gateway.

    `may_take`: whether the due callbacks belong to this installation; nothing is pulled while it returns False.
    `retry_delays`: as RETRY_DELAYS.
    """

    def __init__(
        self,
        process: Process,
        topology: Topology,
        sender: Sender,
        may_take: Callable[[], bool] = lambda: True,
        retry_delays: Sequence[float] = RETRY_DELAYS,
    ) -> None:
        self._process = process
        self._topology = topology
        self._sender = sender
        self._retry_delays = retry_delays
        self._broker = process.broker
        self._log = process.log
        self._receivers = ReceiverSlots()
        self._dead_letters = DeadLetters(self._broker, self._log)
        ack_wait = process.settings.ack_wait_seconds
        holder = Holder(self._broker, topology)
        self._leases = Leases(holder, ack_wait)
        self._puller = PullConsumer(
            holder,
            subjects.CALLBACKS,
            subjects.GATEWAY,
            MAX_AT_ONCE,
            ack_wait,
            self._on_delivery,
            self._log,
            may_take,
        )
        self._held: set[tuple[int, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start pulling. Call it after NATS is connected and the streams exist."""
        self._broker.on_reconnect.append(self._on_reconnect)
        self._leases.start()
        await self._puller.start()

    async def stop(self, deadline: float) -> None:
        """Stop pulling, then finish the attempts in progress. Those still running near the deadline are handed back.

        `deadline` is in event-loop time.
        """
        await self._puller.stop()
        seconds_left = deadline - HAND_BACK_SECONDS - asyncio.get_running_loop().time()
        if self._tasks and seconds_left > 0:
            await asyncio.wait(self._tasks, timeout=seconds_left)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=HAND_BACK_SECONDS)
        await self._leases.stop()
        await self._sender.close()

    async def _on_reconnect(self) -> None:
        self._leases.renew_all()
        self._puller.reset()

    def _on_delivery(self, msg: Delivery) -> None:
        task = asyncio.create_task(self._handle(msg))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, msg: Delivery) -> None:
        try:
            try:
                work = callbacks.decode_work(msg.subject, msg.data)
            except UnusableMessage as error:
                await self._dead_letters.store(msg, str(error))
                return
            if msg.key in self._held:
                return  # redelivered during the attempt: NATS was unreachable for longer than the ack wait
            self._held.add(msg.key)
            msg.hold()
            try:
                await self._attempt(msg, work)
            except asyncio.CancelledError:
                await self._until_known()
                msg.nak()
                self._log.info("callback_handed_back", job_id=work.end.job_id)
            finally:
                msg.let_go()
                self._held.discard(msg.key)
        except BrokerUnavailable as reason:
            self._log.info("left_to_redelivery", subject=msg.subject, message=str(reason))
        except Exception:
            # The callback is redelivered after its ack wait; the other callbacks are not affected.
            self._log.exception("delivery_broken", message="a callback failed with a bug", subject=msg.subject)
        finally:
            self._puller.release()

    async def _attempt(self, msg: Delivery, work: CallbackWork) -> None:
        if isinstance(work, CallbackFailed) and msg.metadata.num_delivered == 1:
            # The delay starts at the first delivery, and only the server's clock measures it; our clock may be wrong.
            await self._put_back(msg, work.delay_seconds)
            return
        try:
            receiver = parse_url(work.end.callback_url)
        except UnusableUrl as error:
            await self._settle(msg, work, Answer(f"The callback_url {error}.", final=True))
            return
        endpoint = f"{receiver.host}:{receiver.port}"
        loop = asyncio.get_running_loop()
        wait = self._receivers.enter(endpoint, work.end.tenant, loop.time())
        if wait is not None:
            await self._put_back(msg, wait)
            return
        started = time.monotonic()
        try:
            answer = await self._sender.post(receiver, work.end)
        except Exception:
            # Count it as a failed attempt, so that a callback that always fails is not redelivered forever.
            self._log.exception("delivery_broken", message="a callback failed with a bug", subject=msg.subject)
            answer = Answer("The gateway could not make this attempt; its log has the cause.")
        finally:
            self._receivers.leave(endpoint, work.end.tenant, time.monotonic() - started, loop.time())
        await self._settle(msg, work, answer)

    async def _settle(self, msg: Delivery, work: CallbackWork, answer: Answer) -> None:
        end, attempts = work.end, work.tries + 1
        at = max(messages.now(), work.at)
        delay = None if answer.final else delay_after(attempts, delays=self._retry_delays)
        log = self._log.bind(job_id=end.job_id, attempt=attempts)
        result: CallbackResult
        if answer.error is None:
            result = CallbackDelivered(end=end, tries=attempts, at=at)
            await self._publish(result)
            log.debug("callback_delivered")
        elif delay is None:
            result = CallbackGivenUp(end=end, tries=attempts, at=at, error=answer.error)
            await self._publish(result)
            log.error("callback_given_up", error=answer.error)
        else:
            result = CallbackFailed(end=end, tries=attempts, at=at, error=answer.error, delay_seconds=delay)
            await self._publish(result)
            log.warning("callback_failed", error=answer.error, delay_seconds=delay)
        await self._until_known()
        msg.ack()

    async def _publish(self, result: CallbackResult) -> None:
        """Publish the result of an attempt. Raises BrokerUnavailable if it is not stored when the gateway stops."""
        message = Envelope(
            subjects.callback_subject(callbacks.token(result), result.end.job_id),
            callbacks.encode(result),
            {"Nats-Msg-Id": callbacks.message_id(result), "traceparent": tracing.child(result.end.trace)},
        )
        log = self._log.bind(job_id=result.end.job_id)
        await publish_until_stored(
            self._broker, self._topology, subjects.CALLBACKS, message, self._process.stopping, log
        )

    async def _put_back(self, msg: Delivery, seconds: float) -> None:
        await self._until_known()
        msg.nak(seconds)

    async def _until_known(self) -> None:
        """Wait until the streams are known again after an outage of NATS, or until the process stops.

        Called before a delivery is settled: someone may have deleted and recreated the stream. The lease
        is renewed meanwhile.
        """
        await self._topology.until_known(self._process.stopping)
