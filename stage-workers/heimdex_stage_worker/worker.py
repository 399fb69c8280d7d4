"""The worker's loop: receive a delivery, decide whether to run it, run it, publish its successor, settle the delivery.

No other code settles the deliveries of a stage. The worker publishes first and settles last. If it is killed in
between, the message is redelivered, its next worker finds that the job has a successor, and drops the delivery.
"""

import asyncio
import time
from datetime import datetime
from typing import Final

import msgspec

from heimdex_contracts import messages, settlement, streams, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, LeaderBehind, Superseded, UnusableMessage
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import Due
from heimdex_contracts.pipelines import Pipeline, Pipelines
from heimdex_contracts.runtime import micro
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.leases import Leases
from heimdex_contracts.runtime.jetstream.publisher import BEHIND_SECONDS, Publisher, Refused
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.process import EXIT_BROKEN, Process
from heimdex_contracts.settlement import Errored, Interrupted, Lost, Outcome
from heimdex_stage_worker.context import StageContext, StageFunction
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.isolation_policy import is_suspect, last_tick
from heimdex_stage_worker.execution.stuck_functions import StuckFunctions
from heimdex_stage_worker.execution.subprocess_attempt import MAX_AT_ONCE, IsolatedAttempt
from heimdex_stage_worker.execution.threads import Threads
from heimdex_stage_worker.held_job import HeldJob
from heimdex_stage_worker.progress import Reporter
from heimdex_stage_worker.transitions import completed_or_next, failed, handed_back

#: The number of canceled jobs that the worker remembers.
MAX_CANCELED: Final = 10_000
#: From this number of held jobs on, hand-overs are buffered for LINGER_SECONDS (see `runtime.jetstream.client`).
BUSY: Final = 8
LINGER_SECONDS: Final = 0.004
#: The part of the grace period that is reserved for handing back unfinished jobs.
HAND_BACK_SECONDS: Final = 2.0
#: The redelivery delay of a message that the stream's leader has not applied.
BEHIND_DELAY_SECONDS: Final = 1.0


class StageWorker:
    """Runs the jobs that are due at one stage, in one process. `function`: the stage's function."""

    def __init__(self, process: Process, pipelines: Pipelines, stage: str, function: StageFunction) -> None:
        settings = process.settings
        self._process = process
        self._pipelines = pipelines
        self._stage = stage
        self._function = function
        self._broker = process.broker
        self._log = process.log.bind(stage=stage)
        self._topology = Topology(
            self._broker,
            streams.for_stages(pipelines.stage_names, settings.ack_wait_seconds),
            settings.stream_replicas,
            self._log,
            own=(stage,),
        )
        self._publisher = Publisher(self._broker, self._log, lambda: self._topology.problem_of(subjects.JOBS))
        self._unusable = DeadLetters(self._broker, self._log)
        self._holder = Holder(self._broker, self._topology)
        self._leases = Leases(self._holder, settings.ack_wait_seconds)
        self._counters = micro.Counters(stage, subjects.stage_filter(stage), stage)
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
        self._puller = PullConsumer(
            self._holder,
            subjects.JOBS,
            stage,
            settings.stage_concurrency,
            settings.ack_wait_seconds,
            self._on_delivery,
            self._log,
        )

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
        await self._puller.start()
        self._log.info("ready", concurrency=process.settings.stage_concurrency)
        if await process.unless_stopped(self._abandoned.too_many.wait()):
            process.exit_code = EXIT_BROKEN
            process.stopping.set()
        watching.cancel()
        await self._stop(process.stop_by())

    async def _on_reconnect(self) -> None:
        self._leases.renew_all()
        self._puller.reset()

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

    def _on_delivery(self, msg: Delivery) -> None:
        task = asyncio.create_task(self._handle(msg))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, msg: Delivery) -> None:
        began = time.monotonic_ns()
        error: str | None = None
        try:
            try:
                due = messages.decode_job(msg.subject, msg.data)
                held = HeldJob(msg, self._check(due), self._pipelines.by_type[due.type])
            except UnusableMessage as unusable:
                error = str(unusable)
                await self._unusable.store(msg, error)
                return
            if held.delivery.key in self._held:
                return  # redelivered while it runs here: a NATS outage was longer than the ack wait
            self._hold(held)
            try:
                outcome = await self._outcome_of(held)
                error = outcome.error if isinstance(outcome, Errored) else None
                await self._settle(held, outcome)
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
            finally:
                self._let_go(held)
        except LeaderBehind as reason:
            error = str(reason)
        except (BrokerUnavailable, Refused) as reason:
            # The process stopped during a NATS outage. Nothing was published, so the message is redelivered after its
            # ack wait.
            error = str(reason)
            self._log.info("left_to_redelivery", subject=msg.subject, message=error)
        except Exception as defect:
            # The message is redelivered after its ack wait; the worker continues with other deliveries.
            error = repr(defect)
            self._log.exception("delivery_broken", message="unexpected error in a delivery", subject=msg.subject)
        finally:
            self._counters.count(time.monotonic_ns() - began, error)
            self._puller.release()

    def _check(self, due: messages.AnyJobMessage) -> Due:
        pipeline = self._pipelines.by_type.get(due.type)
        if not isinstance(due, Due) or pipeline is None or due.stage not in pipeline.stage_names:
            raise UnusableMessage(f"this worker has no job type {due.type!r} with the stage {due.stage!r}")
        return due

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
        due, pipeline = held.due, held.pipeline
        if (held.redelivered or held.fired) and await self._is_superseded(held):
            return settlement.Superseded()
        tick = await last_tick(self._broker, due) if held.redelivered else None
        # No await follows until `held.running` is set, so a later cancel finds it.
        if self._has_seen_cancel(due):
            return settlement.Superseded()
        if tick is not None:
            held.reported_progress = max(held.reported_progress, tick.progress)
        if held.attempt > settlement.max_attempts(self._backoff(pipeline)):
            return Lost()
        if self._process.stopping.is_set():
            return Interrupted()
        declared = pipeline.stage(self._stage)
        suspect = is_suspect(tick, held.attempt, settlement.max_attempts(self._backoff(pipeline)))
        ctx = StageContext(
            job_id=due.job_id,
            job_type=due.type,
            stage=self._stage,
            attempt=held.attempt,
            expected_seconds=declared.expected_seconds,
            mock_time_scale=self._process.settings.mock_time_scale,
            fail_at_stage=due.fail_at_stage,
        )
        if suspect and due.fail_at_stage != self._stage:
            self._log.warning("attempt_isolated", job_id=due.job_id, attempt=held.attempt)
            held.running = IsolatedAttempt(declared.code, ctx, declared.timeout_seconds, self._isolated)
        else:
            held.running = Attempt(self._function, ctx, declared.timeout_seconds, self._threads)
        held.reporter = Reporter(self._broker, due, pipeline, ctx, held.reported_progress, held.started_at)
        if held.redelivered:
            await held.reporter.mark_begin()
        held.reporter.start()
        self._log.debug("attempt_started", job_id=due.job_id, attempt=held.attempt, step=due.step, run=due.run)
        try:
            return await held.running.run()
        finally:
            held.reporter.stop()
            if isinstance(held.running, Attempt) and (function := held.running.goes_on):
                self._abandoned.watch(function, ctx)

    def _backoff(self, pipeline: Pipeline) -> tuple[float, ...]:
        override = self._process.settings.retry_backoff_seconds
        return pipeline.retry_backoff_seconds if override is None else override

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
        backoff = self._backoff(held.pipeline)
        decision = settlement.settle(outcome, self._stage, held.attempt, backoff)
        try:
            match decision:
                case settlement.Advance():
                    await self._publish(held, completed_or_next(held.due, held.pipeline, held.ended()))
                    self._log.debug("stage_finished", job_id=held.due.job_id, attempt=held.attempt)
                case settlement.GiveUp(error=error):
                    await self._publish(held, failed(held.due, held.ended(), error))
                    self._log_of(held).warning("job_failed", error=error)
                case settlement.HandBack():
                    await self._publish(held, handed_back(held.due, held.ended()))
                    self._log_of(held).info("job_handed_back")
                case settlement.Drop():
                    self._log_of(held).info(
                        "delivery_dropped",
                        message="the delivery is superseded",
                        canceled=self._has_seen_cancel(held.due),
                    )
                case settlement.Retry(error=error, delay_seconds=delay):
                    # Callers may see the progress message before the failed attempt, so both have the same time.
                    at = max(messages.now(), held.started_at)
                    if held.reporter:
                        # A lost process keeps the job suspect: its next attempt also runs in a process of its own.
                        held.reporter.mark_end(vanished=isinstance(outcome, Errored) and outcome.vanished, at=at)
                    await self._publish_attempt(held, error, delay, at)
                    self._log_of(held).warning("attempt_failed", error=error, delay_seconds=delay)
                    await self._until_known()
                    held.delivery.nak(delay)
                    return
        except Superseded as reason:
            self._log_of(held).info(
                "delivery_superseded", message="the broker rejected a late message", reason=str(reason)
            )
        await self._until_known()
        held.delivery.ack()

    def _log_of(self, held: HeldJob) -> Logger:
        return self._log.bind(job_id=held.due.job_id, attempt=held.attempt)

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

    async def _publish_attempt(self, held: HeldJob, error: str, delay: float, at: datetime) -> None:
        """Publish the failed attempt until it is stored. The nak waits for that, so that the history is complete.

        Raises BrokerUnavailable if the worker stops before.
        """
        due = held.due
        payload = messages.encode(
            messages.AttemptFailed(
                **spec_of(due, messages.AttemptFailed),
                step=due.step,
                run=due.run,
                stage=self._stage,
                attempt=held.attempt,
                error=error,
                delay_seconds=delay,
                started_at=held.started_at,
                at=at,
                progress=held.reporter.percent() if held.reporter else held.reported_progress,
            )
        )
        headers = {
            "Nats-Msg-Id": f"{due.job_id}.{due.step}.{held.attempt}",
            "traceparent": tracing.child(due.trace),
        }
        while True:
            await self._until_whole(subjects.ATTEMPTS)
            try:
                ack = await self._broker.publish(subjects.attempt_subject(self._stage, due.job_id), payload, headers)
                if ack.error is None:
                    return
                self._log.error("publish_refused", job_id=due.job_id, message=ack.error.description)
            except (BrokerUnavailable, msgspec.DecodeError) as reason:
                self._log.debug("attempt_not_stored_yet", job_id=due.job_id, message=str(reason))
            if self._process.stopping.is_set():
                raise BrokerUnavailable("the failed attempt was not stored before the worker stopped")
            await asyncio.sleep(0.5)

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
        await self._puller.stop()
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
