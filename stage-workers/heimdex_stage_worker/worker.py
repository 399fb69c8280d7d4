"""The worker's loop: receive a delivery, decide whether to run it, run it, publish its successor, settle the delivery.

No other code settles the deliveries of a stage. The worker publishes first and settles last. If it is killed in
between, the message is redelivered, its next worker finds that the job has a successor, and drops the delivery.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from heimdex.attempt_state import AttemptState
from heimdex.binding import BoundFunction
from heimdex_contracts import messages, settlement, streams, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, LeaderBehind, Superseded, UnusableMessage
from heimdex_contracts.exception_text import describe
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import Due
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime import micro
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.leases import Leases
from heimdex_contracts.runtime.jetstream.publish_until_stored import publish_until_stored
from heimdex_contracts.runtime.jetstream.publisher import BEHIND_SECONDS, Envelope, Publisher, Refused
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.process import EXIT_BROKEN, Process
from heimdex_contracts.settlement import Errored, Interrupted, Lost, Outcome
from heimdex_stage_worker.blocked_loop import BlockedLoop
from heimdex_stage_worker.claims import Begun, Claims, ClaimTaken
from heimdex_stage_worker.execution import failures
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.guarded_tasks import create_task
from heimdex_stage_worker.execution.isolation_policy import is_suspect
from heimdex_stage_worker.execution.stuck_functions import StuckFunctions
from heimdex_stage_worker.execution.subprocess_attempt import MAX_AT_ONCE, IsolatedAttempt
from heimdex_stage_worker.execution.threads import Threads
from heimdex_stage_worker.held_job import HeldJob
from heimdex_stage_worker.progress import Reporter
from heimdex_stage_worker.served_stage import ServedStage
from heimdex_stage_worker.transitions import completed_or_next, failed, handed_back
from heimdex_stage_worker.unknown_work import UnknownWork

#: The number of canceled jobs that the worker remembers.
MAX_CANCELED: Final = 10_000
#: From this number of held jobs on, hand-overs are buffered for LINGER_SECONDS (see `runtime.jetstream.client`).
BUSY: Final = 8
LINGER_SECONDS: Final = 0.004
#: How long a delivery may wait in a worker that several queues fill, while other jobs run. Another one may be free.
SLOT_SECONDS: Final = 2.0
#: The redelivery delay of a delivery that has waited in vain. It costs no attempt.
SLOT_DELAY_SECONDS: Final = 0.5
#: The part of the grace period that is reserved for handing back unfinished jobs.
HAND_BACK_SECONDS: Final = 2.0
#: The error of an attempt without a result.
WORKER_LOST: Final = "worker lost: the attempt reported no result"
#: The redelivery delay of a message that the stream's leader has not applied.
BEHIND_DELAY_SECONDS: Final = 1.0


class StageWorker:
    """Runs the jobs that are due at one stage, in one process. functions: the stage's function, by job type."""

    def __init__(
        self, process: Process, pipelines: Pipelines, stage: str, functions: Mapping[str, BoundFunction]
    ) -> None:
        settings = process.settings
        self._process = process
        self._stage = stage
        self._broker = process.broker
        self._log = process.log.bind(stage=stage)
        # Jobs submitted before the stage got its name are queued under a former one.
        queues = (stage, *pipelines.former_names(stage))
        self._topology = Topology(
            self._broker,
            streams.for_stages(pipelines.queue_names, settings.ack_wait_seconds),
            settings.stream_replicas,
            self._log,
            own=queues,
        )
        self._publisher = Publisher(self._broker, self._log, lambda: self._topology.problem_of(subjects.JOBS))
        self._unusable = DeadLetters(self._broker, self._log)
        override = settings.retry_backoff_seconds
        #: The stages that this worker runs, by job type and the name in the job's route, which may be a former one.
        self._served = {
            (pipeline.type, name): ServedStage(
                pipeline,
                declared,
                functions[pipeline.type],
                pipeline.backoff_of(declared.name) if override is None else override,
            )
            for pipeline, declared in pipelines.stages_named(stage)
            for name in declared.names
        }
        self._unknown = UnknownWork(self._broker, self._log)
        self._claims = Claims(self._broker, process.stopping, self._log)
        self._holder = Holder(self._broker, self._topology)
        self._leases = Leases(self._holder, settings.ack_wait_seconds)
        self._counters = micro.Counters(stage, subjects.stage_filter(stage), stage)
        self._counters.details["refused_deliveries"] = self._unknown.counts
        self._threads = Threads(stage)
        self._abandoned = StuckFunctions(settings.stage_concurrency, self._log)
        #: The jobs canceled last, with the step of the cancel: a delivery of such a job may still arrive.
        self._canceled: dict[str, int] = {}
        self._isolated = asyncio.Semaphore(MAX_AT_ONCE)
        self._held: dict[tuple[int, int], HeldJob] = {}
        self._by_job: dict[str, HeldJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broker.nc.request_linger = lambda: LINGER_SECONDS if len(self._held) >= BUSY else 0.0
        #: The event-loop time after which publishes are no longer repeated; set when the process stops.
        self._deadline: float | None = None
        self._pullers = [
            PullConsumer(
                self._holder,
                subjects.JOBS,
                queue,
                settings.stage_concurrency,
                settings.ack_wait_seconds,
                self._on_delivery_from(number),
                self._log,
            )
            for number, queue in enumerate(queues)
        ]
        #: Limits the running jobs where several queues, each with this capacity, fill the worker.
        self._slots = asyncio.Semaphore(settings.stage_concurrency) if len(queues) > 1 else None

    async def serve(self) -> None:
        """Run jobs until the process receives a stop signal, then finish or hand back the held jobs."""
        process = self._process
        if not await process.connect() or not await process.unless_stopped(self._topology.start()):
            return
        process.health.append(self._topology.ready.is_set)
        self._broker.on_reconnect.append(self._on_reconnect)
        await micro.register(self._broker.nc, f"heimdex-{self._stage}", f"runs the stage {self._stage}", self._counters)
        # The republished message rather than the publish itself: a publish may be rejected, and then the job continues.
        await self._broker.nc.direct_subscribe(subjects.stored_subject(subjects.CANCELED), self._on_canceled)
        watching = asyncio.create_task(installations.Watch(self._broker, self._log).run())
        self._leases.start()
        asyncio.get_running_loop().set_task_factory(create_task)
        blocked_loop = BlockedLoop(process.settings, self._holder, process.name, self._log)
        blocked_loop.start()
        for puller in self._pullers:
            await puller.start()
        process.ready(self._log, concurrency=process.settings.stage_concurrency)
        if await process.unless_stopped(self._abandoned.too_many.wait()):
            process.exit_code = EXIT_BROKEN
            process.stopping.set()
        watching.cancel()
        await self._stop(process.stop_by())
        blocked_loop.stop()

    async def _on_reconnect(self) -> None:
        self._leases.renew_all()
        for puller in self._pullers:
            puller.reset()

    def _on_canceled(self, subject: bytes, _: bytes, data: bytes, __: bytes) -> None:
        try:
            canceled = messages.decode_job(subjects.subject_of_stored(subject.decode(errors="replace")), data)
        except UnusableMessage:
            return  # the status store stores it as a dead letter
        self._canceled[canceled.job_id] = canceled.step
        if len(self._canceled) > MAX_CANCELED:
            del self._canceled[next(iter(self._canceled))]
        held = self._by_job.get(canceled.job_id)
        if held and held.running and held.due.step < canceled.step:
            held.running.supersede()

    def _on_delivery_from(self, number: int) -> Callable[[Delivery], None]:
        """Return the callback of the queue with this number."""

        def on_delivery(msg: Delivery) -> None:
            self._spawn(self._handle(msg, self._pullers[number]))

        return on_delivery

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # The task factory is for the tasks of stages (see `execution.guarded_tasks`).
        task = asyncio.Task(work, loop=asyncio.get_running_loop())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, msg: Delivery, puller: PullConsumer) -> None:
        began = time.monotonic_ns()
        error: str | None = None
        try:
            try:
                due = _decoded(msg)
            except UnusableMessage as unusable:
                error = str(unusable)
                await self._unusable.store(msg, error)
                return
            served = self._served.get((due.type, due.stage))
            if served is None:
                # Before any look at the streams: there may be very many such jobs.
                error = self._unknown.refuse(msg, due)
                return
            if msg.key in self._held:
                return  # redelivered while it runs here: a NATS outage was longer than the ack wait
            error = await self._run_held(HeldJob(msg, due, served))
        except LeaderBehind as reason:
            error = str(reason)
        except ClaimTaken as reason:
            # Neither acknowledged nor returned: that would settle the delivery of the worker that runs the job.
            error = str(reason)
            self._log.info("delivery_declined", subject=msg.subject, message=error)
        except (BrokerUnavailable, JetStreamError, Refused) as reason:
            # The process stopped during a NATS outage. Nothing was published, so the message is redelivered after its
            # ack wait.
            error = str(reason)
            self._log.info("left_to_redelivery", subject=msg.subject, message=error)
        except Exception as defect:
            # The message is redelivered after its ack wait; the worker continues with other deliveries.
            error = describe(defect)
            self._log.exception("delivery_broken", message="unexpected error in a delivery", subject=msg.subject)
        finally:
            self._counters.count(time.monotonic_ns() - began, error)
            puller.release()

    async def _run_held(self, held: HeldJob) -> str | None:
        """Run a job's attempt and settle its delivery. Returns the error of the attempt, or None."""
        self._hold(held)
        try:
            if self._slots is not None and not await self._takes_slot(self._slots):
                # After a longer freeze of this process, another worker may hold the message.
                if time.monotonic() - held.began < self._process.settings.ack_wait_seconds:
                    held.delivery.nak(SLOT_DELAY_SECONDS)
                return None
            try:
                outcome = await self._outcome_of(held)
                await self._settle(held, outcome)
            finally:
                if self._slots is not None:
                    self._slots.release()
            return outcome.error if isinstance(outcome, Errored) else None
        except LeaderBehind as reason:
            # Do not acknowledge: this may be the job's only message. A leader that has lost messages assigns this
            # sequence to another message in time; a later redelivery is then handled like any other.
            self._log_of(held).warning(
                "leader_behind",
                message="the stream's leader has not applied this message: it will be redelivered",
                reason=str(reason),
            )
            await self._until_known()
            held.delivery.nak(BEHIND_DELAY_SECONDS)
            raise
        except (BrokerUnavailable, JetStreamError, Refused, ClaimTaken):
            raise
        except Exception as defect:
            # A defect of this worker, not of the stage: the attempt fails with it, so that it is seen and retried.
            self._log_of(held).exception("settlement_broken", message="unexpected error while settling an attempt")
            described = failures.errored(defect)
            error = f"the worker could not settle this attempt: {described.error}"
            await self._settle(held, Errored(error, traceback=described.traceback))
            return error
        finally:
            self._let_go(held)

    async def _takes_slot(self, slots: asyncio.Semaphore) -> bool:
        """Wait for a slot, where several queues fill the worker. Returns False if none becomes free in time."""
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                return await slots.acquire()
        except TimeoutError:
            return False

    def _hold(self, held: HeldJob) -> None:
        self._held[held.delivery.key] = held
        self._by_job[held.due.job_id] = held
        held.delivery.hold()

    def _let_go(self, held: HeldJob) -> None:
        held.delivery.let_go()
        self._held.pop(held.delivery.key, None)
        if self._by_job.get(held.due.job_id) is held:
            del self._by_job[held.due.job_id]

    async def _outcome_of(self, held: HeldJob) -> Outcome:
        due, served = held.due, held.served
        allowed = settlement.max_attempts(served.backoff)
        if (held.redelivered or held.fired) and await self._is_superseded(held):
            return settlement.Superseded()
        begun: Begun | None = None
        if held.redelivered:
            begun = await self._claims.begun(due)
            held.count(begun)
            if not begun.reported:
                await self._publish_lost(held, begun)
        # No await follows until `held.running` is set, so a later cancel finds it.
        if self._has_seen_cancel(due):
            return settlement.Superseded()
        if begun is not None and held.attempt > allowed:
            held.attempt = begun.attempt
            return Lost(begun.reported)
        if self._process.stopping.is_set():
            return Interrupted()
        declared = served.declared
        state = AttemptState(
            job_id=due.job_id,
            job_type=due.type,
            stage=due.stage,
            attempt=held.attempt,
            expected_seconds=declared.expected_seconds,
            mock_time_scale=self._process.settings.mock_time_scale,
            fail_at_stage=due.fail_at_stage,
            params=due.params,
            finished=due.finished,
        )
        suspect = begun is not None and is_suspect(begun.vanished, held.attempt, allowed)
        if suspect and due.fail_at_stage != due.stage:
            self._log_of(held).warning("attempt_isolated")
            modules = () if served.function.is_plain else self._process.settings.pipelines
            held.running = IsolatedAttempt(declared.code, state, declared.timeout_seconds, self._isolated, modules)
        else:
            held.running = Attempt(served.function, state, declared.timeout_seconds, self._threads, self._log)
        held.reporter = Reporter(self._broker, due, served.pipeline, state, held.reported_progress, held.started_at)
        if begun is not None:
            await self._claim(held, held.reporter, begun)
        held.reporter.start()
        # Not `_log_of`: a bound logger costs more than a line that is not written.
        self._log.debug(
            "attempt_started",
            job_id=due.job_id,
            stage=due.stage,
            attempt=held.attempt,
            step=due.step,
            run=due.run,
        )
        try:
            return await held.running.run()
        finally:
            held.reporter.stop()
            if isinstance(held.running, Attempt) and (function := held.running.goes_on):
                self._abandoned.watch(function, state)

    async def _claim(self, held: HeldJob, reporter: Reporter, begun: Begun) -> None:
        """Store that a repeated attempt begins, because it may kill this process at once."""
        claim = await self._claims.claim(held.due, held.attempt, held.started_at, begun.sequence)
        if claim is None:
            await reporter.mark_begin()
        else:
            held.claim = claim

    async def _is_superseded(self, held: HeldJob) -> bool:
        """Return whether this message has a successor or its job was canceled. Repeats until NATS answers.

        The lease is renewed meanwhile. Raises LeaderBehind when the stream's leader has not applied the message within
        BEHIND_SECONDS, BrokerUnavailable or JetStreamError when the worker stops before NATS answers.
        """
        behind_until = time.monotonic() + BEHIND_SECONDS
        while True:
            try:
                # A leader that has applied this message has also applied the cancel before it.
                last = await self._publisher.newest(held.due.job_id, held.sequence)
                if held.fired and await self._was_canceled(held.due):
                    return True
                break
            except (BrokerUnavailable, JetStreamError) as error:
                behind = isinstance(error, LeaderBehind)
                if self._process.stopping.is_set() or (behind and time.monotonic() > behind_until):
                    raise
                await asyncio.sleep(0.05 if behind else 0.5)
        if last is None or last.sequence < held.sequence:
            return True  # this message is no longer in the stream: another process has settled or removed it
        if last.sequence == held.sequence:
            return False
        try:
            return messages.decode_job(last.subject, last.data).step > held.due.step
        except UnusableMessage:
            return False

    def _has_seen_cancel(self, due: Due) -> bool:
        return due.step < self._canceled.get(due.job_id, 0)

    async def _was_canceled(self, due: Due) -> bool:
        """Return whether the stream has a cancel for this scheduled job. Its schedule may fire before it is removed."""
        subject = subjects.job_subject(subjects.CANCELED, due.job_id)
        canceled = await self._broker.last_message(subjects.JOBS, subject)
        try:
            return canceled is not None and messages.decode_job(canceled.subject, canceled.data).step > due.step
        except UnusableMessage:
            return False

    async def _settle(self, held: HeldJob, outcome: Outcome) -> None:
        decision = settlement.settle(outcome, held.due.stage, held.attempt, held.served.backoff)
        try:
            match decision:
                case settlement.Advance(output=output):
                    successor = completed_or_next(held.due, held.served.pipeline, held.ended(), output)
                    await self._publish(held, successor)
                    self._log.debug(
                        "stage_finished", job_id=held.due.job_id, stage=held.due.stage, attempt=held.attempt
                    )
                case settlement.GiveUp(error=error, traceback=traceback):
                    await self._publish(held, failed(held.due, held.ended(), error, traceback))
                    self._log_of(held).warning("job_failed", error=error, traceback=traceback)
                case settlement.HandBack():
                    await self._publish(held, handed_back(held.due, held.ended()))
                    self._log_of(held).info("job_handed_back")
                case settlement.Drop():
                    self._log_of(held).info(
                        "delivery_dropped",
                        message="the delivery is superseded",
                        canceled=self._has_seen_cancel(held.due),
                    )
                case settlement.Retry():
                    vanished = isinstance(outcome, Errored) and outcome.vanished
                    await self._return(held, decision, vanished=vanished)
                    return
        except Superseded as reason:
            self._log_of(held).info(
                "delivery_superseded", message="the broker rejected a late message", reason=str(reason)
            )
        await self._until_known()
        held.delivery.ack()
        if held.redelivered:
            self._spawn(self._claims.remove(held.due))

    async def _return(self, held: HeldJob, retry: settlement.Retry, *, vanished: bool) -> None:
        """Publish the failed attempt, then return the delivery for the next one.

        vanished: the attempt's own process was lost: the job stays suspect, and its next attempt is isolated as well.
        """
        # Callers may see the progress message before the failed attempt, so both have the same time.
        at = max(messages.now(), held.started_at)
        if held.reporter:
            held.reporter.mark_end(vanished=vanished, at=at)
        event = self._attempt_event(
            held, held.attempt, at=at, started_at=held.started_at, error=retry.error, traceback=retry.traceback
        )
        await self._publish_attempt(held, msgspec.structs.replace(event, delay_seconds=retry.delay_seconds))
        asked_at = time.monotonic()
        await self._claims.report_end(held.due, held.attempt, held.started_at, held.claim, vanished=vanished)
        if self._leases.lapsed_since(asked_at):
            # This process was frozen meanwhile, and a nak now would return the delivery of another worker.
            raise ClaimTaken("the lease ended while the end of the attempt was stored")
        self._log_of(held).warning(
            "attempt_failed", error=retry.error, delay_seconds=retry.delay_seconds, traceback=retry.traceback
        )
        await self._until_known()
        held.delivery.nak(retry.delay_seconds)

    def _log_of(self, held: HeldJob) -> Logger:
        return self._log.bind(job_id=held.due.job_id, stage=held.due.stage, attempt=held.attempt)

    async def _publish(self, held: HeldJob, message: messages.AnyJobMessage) -> None:
        while True:
            await self._until_whole(subjects.JOBS)
            try:
                await self._publisher.publish(message, held.sequence, self._deadline)
                return
            except Refused as error:
                # Only the gateway rejects jobs. An accepted job waits here, its lease renewed, until JetStream accepts
                # it.
                self._log.error("publish_refused", job_id=message.job_id, message=str(error))
                if self._process.stopping.is_set():
                    raise
                await asyncio.sleep(1)

    async def _until_whole(self, stream: str) -> None:
        """Wait until the stream and its consumers are correct, or until the worker stops."""
        if not self._topology.ready.is_set():
            await self._process.unless_stopped(self._topology.until_whole(stream))

    async def _publish_lost(self, held: HeldJob, begun: Begun) -> None:
        """Publish that an attempt reported no result, so that the history has every attempt that began.

        Repeating this is harmless: the history keeps the first event of an attempt, which may be its error.
        """
        at = max(messages.now(), held.due.at)
        event = self._attempt_event(
            held, begun.attempt, at=at, started_at=begun.started_at or held.due.at, error=WORKER_LOST, traceback=None
        )
        await self._publish_attempt(held, msgspec.structs.replace(event, lost=True))
        self._log_of(held).warning("attempt_lost", attempt=begun.attempt, message=WORKER_LOST)

    def _attempt_event(
        self, held: HeldJob, attempt: int, *, at: datetime, started_at: datetime, error: str, traceback: str | None
    ) -> messages.AttemptFailed:
        due = held.due
        return messages.AttemptFailed(
            **spec_of(due, messages.AttemptFailed),
            step=due.step,
            run=due.run,
            stage=due.stage,
            attempt=attempt,
            error=error,
            delay_seconds=0.0,
            started_at=started_at,
            at=at,
            progress=held.reporter.percent() if held.reporter else held.reported_progress,
            traceback=traceback,
        )

    async def _publish_attempt(self, held: HeldJob, event: messages.AttemptFailed) -> None:
        """Publish the end of an attempt until it is stored. The nak waits for that, so that the history is complete.

        Raises BrokerUnavailable if the worker stops before.
        """
        message = Envelope(
            subjects.attempt_subject(event.stage, event.job_id),
            messages.encode(event),
            {
                "Nats-Msg-Id": f"{event.job_id}.{event.step}.{event.attempt}",
                "traceparent": tracing.child(held.due.trace),
            },
        )
        stopping, log = self._process.stopping, self._log_of(held)
        await publish_until_stored(self._broker, self._topology, subjects.ATTEMPTS, message, stopping, log)

    async def _until_known(self) -> None:
        """Wait until NATS is connected and the streams have been checked, or until the worker stops.

        Must be awaited before a delivery is settled. Its lease is renewed meanwhile.
        """
        await self._topology.until_known(self._process.stopping)

    async def _stop(self, stop_by: float) -> None:
        loop = asyncio.get_running_loop()
        reserve = min(HAND_BACK_SECONDS, self._process.settings.shutdown_grace_seconds / 2)
        self._log.info("stopping", held=len(self._held))
        self._deadline = stop_by
        await asyncio.gather(*(puller.stop() for puller in self._pullers))
        await self._wait_for_tasks(stop_by - reserve - loop.time())
        for held in list(self._held.values()):
            if held.running:
                held.running.interrupt()
        await self._wait_for_tasks(stop_by - loop.time())
        if self._held:
            self._log.warning(
                "left_to_redelivery", held=len(self._held), message="did not hand back all jobs within the grace period"
            )
        await self._leases.stop()
        await self._topology.stop()

    async def _wait_for_tasks(self, seconds: float) -> None:
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks, timeout=seconds)


def _decoded(msg: Delivery) -> Due:
    """Decode a delivery of the stage's queue. Raises UnusableMessage unless it is a hand-over along its own route."""
    due = messages.decode_job(msg.subject, msg.data)
    if not isinstance(due, Due):
        raise UnusableMessage("the message is a terminal event, not a hand-over")
    if due.route and (due.stage not in due.route or len(set(due.route)) < len(due.route)):
        raise UnusableMessage(f"its route must have each stage once, and the stage {due.stage!r} among them")
    return due
