"""Takes the tries that are due from JetStream, makes them, publishes how each went, and settles its delivery.

Publish first, settle last, as a stage's worker does: a gateway that is killed in between leaves a delivery that comes
back, and is tried once more under the same `webhook-id`. All gateways share one durable consumer.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from heimdex_callbacks.concurrency import MAX_AT_ONCE, ReceiverSlots
from heimdex_callbacks.retry_schedule import delay_after
from heimdex_callbacks.sender import Answer, Sender
from heimdex_callbacks.url import UnusableUrl, parse_url
from heimdex_contracts import callbacks, messages, subjects, tracing
from heimdex_contracts.callbacks import (
    AnyCallback,
    CallbackDelivered,
    CallbackFailed,
    CallbackGivenUp,
    CallbackWork,
)
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.leases import Leases
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.process import Process

#: Of the grace period, what is kept for handing back the tries that did not end.
HAND_BACK_SECONDS: Final = 1.0


class Dispatcher:
    """Of one gateway. `may_take`: whether what is due is this installation's."""

    def __init__(
        self, process: Process, topology: Topology, poster: Sender, may_take: Callable[[], bool] = lambda: True
    ) -> None:
        self._process = process
        self._topology = topology
        self._poster = poster
        self._broker = process.broker
        self._log = process.log
        self._receivers = ReceiverSlots()
        self._unusable = DeadLetters(self._broker, self._log)
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
        """Begin, once NATS is connected and the streams are there."""
        self._broker.on_reconnect.append(self._on_reconnect)
        self._leases.start()
        await self._puller.start()

    async def stop(self, deadline: float) -> None:
        """Take nothing more; end the tries that are under way, or hand them back before this event-loop time."""
        await self._puller.stop()
        left = deadline - HAND_BACK_SECONDS - asyncio.get_running_loop().time()
        if self._tasks and left > 0:
            await asyncio.wait(self._tasks, timeout=left)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=HAND_BACK_SECONDS)
        await self._leases.stop()
        await self._poster.close()

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
                await self._unusable.store(msg, str(error))
                return
            if msg.key in self._held:
                return  # delivered again while it is tried here: the broker was away for longer than the ack wait
            self._held.add(msg.key)
            msg.hold()
            try:
                await self._try(msg, work)
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
            # It comes back after its ack wait; the gateway goes on with the others.
            self._log.exception("delivery_broken", message="a callback ended in a defect", subject=msg.subject)
        finally:
            self._puller.release()

    async def _try(self, msg: Delivery, work: CallbackWork) -> None:
        if isinstance(work, CallbackFailed) and msg.metadata.num_delivered == 1:
            # Its pause begins with its first delivery: by the broker's clock alone, whatever ours says.
            await self._put_back(msg, work.delay_seconds)
            return
        try:
            receiver = parse_url(work.end.callback_url)
        except UnusableUrl as error:
            await self._settle(msg, work, Answer(f"The callback_url {error}.", final=True))
            return
        name = f"{receiver.host}:{receiver.port}"
        loop = asyncio.get_running_loop()
        wait = self._receivers.enter(name, work.end.tenant, loop.time())
        if wait is not None:
            await self._put_back(msg, wait)
            return
        began = time.monotonic()
        try:
            answer = await self._poster.post(receiver, work.end)
        except Exception:
            # A try as another that failed: one that is broken for good must not come back for ever.
            self._log.exception("delivery_broken", message="a callback ended in a defect", subject=msg.subject)
            answer = Answer("The gateway could not make this try; its log says why.")
        finally:
            self._receivers.leave(name, work.end.tenant, time.monotonic() - began, loop.time())
        await self._settle(msg, work, answer)

    async def _settle(self, msg: Delivery, work: CallbackWork, answer: Answer) -> None:
        end, tries = work.end, work.tries + 1
        at = max(messages.now(), work.at)
        delay = None if answer.final else delay_after(tries)
        log = self._log.bind(job_id=end.job_id, attempt=tries)
        told: AnyCallback
        if answer.error is None:
            told = CallbackDelivered(end=end, tries=tries, at=at)
            await self._publish(told)
            log.debug("callback_delivered")
        elif delay is None:
            told = CallbackGivenUp(end=end, tries=tries, at=at, error=answer.error)
            await self._publish(told)
            log.error("callback_given_up", error=answer.error)
        else:
            told = CallbackFailed(end=end, tries=tries, at=at, error=answer.error, delay_seconds=delay)
            await self._publish(told)
            log.warning("callback_failed", error=answer.error, delay_seconds=delay)
        await self._until_known()
        msg.ack()

    async def _publish(self, told: AnyCallback) -> None:
        """Store how it went, however long that takes: the lease is kept. Raises BrokerUnavailable when told to stop."""
        subject = subjects.callback_subject(callbacks.token(told), told.end.job_id)
        headers = {"Nats-Msg-Id": callbacks.message_id(told), "traceparent": tracing.child(told.end.trace)}
        payload = callbacks.encode(told)
        while True:
            if not self._topology.ready.is_set():
                await self._process.unless_stopped(self._topology.until_whole(subjects.CALLBACKS))
            try:
                ack = await self._broker.publish(subject, payload, headers)
                if ack.error is None:
                    return
                self._log.error("publish_refused", job_id=told.end.job_id, message=ack.error.description)
            except (BrokerUnavailable, msgspec.DecodeError) as reason:
                self._log.debug("callback_not_told_yet", job_id=told.end.job_id, message=str(reason))
            if self._process.stopping.is_set():
                raise BrokerUnavailable("how a callback went could not be stored before the gateway stopped")
            await asyncio.sleep(0.5)

    async def _put_back(self, msg: Delivery, seconds: float) -> None:
        await self._until_known()
        msg.nak(seconds)

    async def _until_known(self) -> None:
        """Before a delivery is settled: its lease is kept until NATS is there, and its stream known to be the same."""
        await self._topology.until_known(self._process.stopping)
