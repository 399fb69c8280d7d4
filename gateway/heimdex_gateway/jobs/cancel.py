"""Cancels a job, or runs an ended one again: one publish, as the successor of the job's newest message."""

import asyncio
import contextlib
from typing import Any, Final, Literal

import msgspec

from heimdex_contracts import lifecycle, messages, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, Superseded, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due, Failed, Follows, Progress
from heimdex_contracts.runtime.jetstream.connection import JetStreamError, Stored
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.jobs.status import NATS_DOWN, Unanswerable
from heimdex_gateway.schemas.job_list import Wanted

#: How long an answer waits for the status store to record the change.
RECORDED_WITHIN_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 2.0
#: All of it together: less than `routes.answers` allows, so that a change that is stored is never answered with 500.
ANSWERED_WITHIN_SECONDS: Final = 4.0
#: How long the work of a canceled job is tried to be taken out of its queue.
REMOVED_WITHIN_SECONDS: Final = 30.0
#: Between two looks at a stream whose leader does not know yet what Postgres does.
_BEHIND_SECONDS: Final = 0.05
#: A job that moves on between our look and our publish is looked at again; it has few stages to move through.
LOOKS: Final = 20
ENDED: Final = "The job has ended ({}): only one that has not can be canceled."

#: Jobs run again at the same time by one request for many.
AT_ONCE: Final = 20

From = Literal["failed", "start"]


class Conflict(HeimdexError):
    """The job's state does not allow the change; the text says why."""


class Changed(msgspec.Struct, frozen=True):
    """The job after the change, whether Postgres has it already, and whether Postgres could be asked at all."""

    job: Snapshot
    recorded: bool
    asked: bool = True


async def cancel(gateway: Gateway, tenant: str, job_id: str, traceparent: str | None) -> Changed | None:
    """End the job as canceled; None where there is no such job.

    A queued job never starts, a running stage is interrupted. Raises Conflict when the job has ended, Unanswerable or
    BrokerUnavailable when it cannot be known.
    """
    answer_by = asyncio.get_running_loop().time() + ANSWERED_WITHIN_SECONDS
    missing = False
    for _ in range(LOOKS):
        job, found = await _job_and_newest(gateway, tenant, job_id)
        if job is None:
            return None
        if job.ended:
            raise Conflict(ENDED.format(job.status))
        if found is None:
            # A replicated stream's leader may not know yet what Postgres does; else the status store restores it.
            missing = True
            await asyncio.sleep(_BEHIND_SECONDS)
            continue
        stored, due = found
        if not isinstance(due, Due):
            continue  # its end was recorded, and it was run again, between our looks
        tick = await _running(gateway, due)
        message = _canceled(due, _carried(due, stored, job), job, tick)
        message = msgspec.structs.replace(message, trace=tracing.start(traceparent) if traceparent else message.trace)
        try:
            await _publish(gateway, message, stored.sequence)
        except Superseded:
            if not await _is_recorded(gateway, message):
                continue  # it went on to its next stage, or ended, between the two
        if due.not_before is not None:
            await _remove(gateway, stored, answer_by)  # before it fires
        changed = await _recorded(gateway, message, answer_by)
        # A worker that has not taken it yet need not be asked to drop it.
        await _remove(gateway, stored, answer_by)
        await _check_it_held(gateway, message, stored, changed)
        return changed
    if missing:
        raise Unanswerable("The job's messages are being restored. Try again in a few seconds.")
    raise Unanswerable("The job moves on too fast to be canceled. Try again.")


async def retry(
    gateway: Gateway, tenant: str, job_id: str, start_from: From, traceparent: str | None, *, wait: bool = True
) -> Changed | None:
    """Run a failed or canceled job again, as its next run; None where there is no such job.

    start_from: the stage where it ended, or the first. wait: until it is recorded.
    Raises Conflict for a job that is not failed or canceled.
    """
    answer_by = asyncio.get_running_loop().time() + ANSWERED_WITHIN_SECONDS
    leader_knows = False
    for _ in range(LOOKS):
        job, found = await _job_and_newest(gateway, tenant, job_id)
        if job is None:
            return None
        if not leader_knows and (found is None or found[1].step < job.step):
            # Older than the row: left over, or the end that the row tells has not reached the stream's leader yet. The
            # next run must follow that end, not what lies before it.
            leader_knows = await gateway.reads.leader_knows_recorded()
            if gateway.broker.replicated:
                await asyncio.sleep(0 if leader_knows else _BEHIND_SECONDS)
                continue
        if job.status not in {"failed", "canceled"}:
            why = "completed" if job.status == "completed" else "not ended"
            raise Conflict(f"The job has {why}: only a failed or canceled one can be run again.")
        # The end of a job leaves the stream once it is recorded; its row keeps it.
        if found is not None and found[1].step == job.step:
            last: AnyJobMessage | None = found[1]
        else:
            last = await gateway.database.last_message(job_id)
        if not isinstance(last, Failed | Canceled):
            continue  # recorded, or run again by somebody else, between our looks
        pipeline = gateway.pipelines.by_type.get(last.type)
        if pipeline is None:
            raise Conflict(f"This gateway knows no job type {last.type!r} any more.")
        stage = pipeline.first_stage
        if start_from == "failed" and last.stage in pipeline.stage_names:
            stage = last.stage or stage
        kept = pipeline.stage_names.index(stage)
        message = Due(
            **_carried(last, found[0] if found else None, job),
            run=last.run + 1,
            stage=stage,
            reason="retried",
            progress=pipeline.progress(stage),
            finished=last.finished[:kept],
        )
        message = msgspec.structs.replace(message, trace=tracing.start(traceparent) if traceparent else message.trace)
        try:
            async with gateway.room.taken():
                await _publish(gateway, message, found[0].sequence if found else 0)
        except Superseded:
            if not await _is_recorded(gateway, message):
                continue
        return await _recorded(gateway, message, answer_by) if wait else Changed(lifecycle.snapshot(message), False)
    raise Unanswerable("The job's state changes too fast to run it again. Try again.")


async def retry_all(gateway: Gateway, tenant: str, status: str, job_type: str | None, most: int) -> tuple[int, bool]:
    """Run again this tenant's jobs of this status and of a type that is known here, newest first, at most so many.

    Returns how many, and whether there are more: also where the rest must wait, since there is no room for more jobs or
    NATS went away meanwhile. Raises as `retry`, and DatabaseUnavailable, where none was run again.
    """
    # One of a type that is not known can never be run again: in the list, it would be one more that there is for ever.
    found: list[Snapshot] = []
    for known in (job_type,) if job_type else gateway.pipelines.types:
        wanted = Wanted(status=status, type=known, created_after=None, created_before=None, limit=most, cursor=None)
        found += await gateway.database.jobs(wanted, tenant)
    found.sort(key=lambda job: (job.created_at, job.job_id), reverse=True)
    slots = asyncio.Semaphore(AT_ONCE)
    obstacles: list[HeimdexError] = []

    async def one(job: Snapshot) -> int:
        async with slots:
            if obstacles:
                return 0  # it stands in the way of this one too
            try:
                return int(await retry(gateway, tenant, job.job_id, "failed", None, wait=False) is not None)
            except Conflict:
                return 0  # somebody else was faster
            except HeimdexError as error:
                obstacles.append(error)
                return 0

    # Every one that was begun is awaited: none runs again after the answer.
    done = sum(await asyncio.gather(*(one(job) for job in found[:most])))
    if obstacles and not done:
        raise obstacles[0]
    return done, bool(obstacles) or len(found) > most


def _carried(last: AnyJobMessage, stored: Stored | None, job: Snapshot) -> dict[str, Any]:
    return {
        "job_id": last.job_id,
        "type": last.type,
        "tenant": last.tenant,
        "step": last.step + 1,
        "created_at": last.created_at,
        "at": messages.later_of(messages.now(), messages.later_of(last.at, job.updated_at)),
        "fail_at_stage": last.fail_at_stage,
        "follows": Follows(stored.sequence) if stored else None,
        "trace": tracing.child(last.trace),
        "callback_url": last.callback_url,
    }


async def _job_and_newest(
    gateway: Gateway, tenant: str, job_id: str
) -> tuple[Snapshot | None, tuple[Stored, AnyJobMessage] | None]:
    """The job, and its newest message in the stream.

    That message may be a left-over, which a status store that is frozen has not acknowledged while another has
    recorded all that came after it. So it is looked at first: the job is then seen to have gone on, or ended.
    """
    try:
        found = await _newest(gateway, job_id)
    except Unanswerable:
        job = await gateway.reads.job(job_id, tenant)
        if job is None or job.ended:
            return job, None
        raise
    return await gateway.reads.job(job_id, tenant), found


async def _newest(gateway: Gateway, job_id: str) -> tuple[Stored, AnyJobMessage] | None:
    try:
        last = await gateway.publisher.last(job_id)
        return None if last is None else (last, messages.decode_job(last.subject, last.data))
    except (BrokerUnavailable, JetStreamError):
        raise Unanswerable(NATS_DOWN) from None
    except UnusableMessage:
        raise Unanswerable("A stranger's message is in the way of this job. Try again in a few seconds.") from None


async def _publish(gateway: Gateway, message: AnyJobMessage, expected: int) -> None:
    await gateway.publisher.publish(message, expected, asyncio.get_running_loop().time() + TIMEOUT_SECONDS)


async def _is_recorded(gateway: Gateway, message: AnyJobMessage) -> bool:
    """Whether a publish that was refused had been stored, unheard, by an earlier try, and left the stream since."""
    with contextlib.suppress(HeimdexError):
        return await gateway.database.last_message(message.job_id) == message
    return False


async def _running(gateway: Gateway, due: Due) -> Progress | None:
    """The newest tick of the attempt that a worker is at; None where none is known."""
    subject = subjects.progress_subject(due.stage, due.job_id)
    try:
        last = await gateway.broker.last_message(subjects.PROGRESS, subject, timeout=1.0)
        tick = None if last is None else messages.decode_progress(last.subject, last.data)
    except (BrokerUnavailable, JetStreamError, UnusableMessage):
        return None
    return tick if tick is not None and tick.step == due.step else None


def _canceled(due: Due, carried: dict[str, Any], job: Snapshot, tick: Progress | None) -> Canceled:
    progress = max(due.progress, job.progress, tick.progress if tick else 0)
    message = Canceled(
        **carried,
        progress=min(99, progress),
        finished=due.finished,
        not_before=due.not_before,
        run=due.run,
        stage=due.stage if due.started or tick or job.status == "processing" else None,
    )
    if tick is None:
        return message
    at = messages.later_of(message.at, tick.at)
    if tick.ended or tick.started_at is None:
        return msgspec.structs.replace(message, at=at)
    seconds = max(0.0, (at - tick.started_at).total_seconds())
    return msgspec.structs.replace(message, at=at, attempt=tick.attempt, started_at=tick.started_at, seconds=seconds)


async def _remove(gateway: Gateway, stored: Stored, answer_by: float) -> None:
    """Take a canceled job's work out of its queue; what is not done by `answer_by` goes on after the answer."""
    removal = gateway.begin(_removal(gateway, stored))
    await asyncio.wait({removal}, timeout=max(0.0, answer_by - asyncio.get_running_loop().time()))


async def _removal(gateway: Gateway, stored: Stored) -> None:
    deadline = asyncio.get_running_loop().time() + REMOVED_WITHIN_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            await gateway.broker.delete_of(subjects.JOBS, stored.subject, stored.sequence)
            return
        except (BrokerUnavailable, JetStreamError):
            await asyncio.sleep(0.5)


async def _recorded(gateway: Gateway, message: AnyJobMessage, answer_by: float) -> Changed:
    """Wait until a plain GET shows the change, but for no longer than an answer may take."""
    after = lifecycle.snapshot(message)
    asked = False
    deadline = min(answer_by, asyncio.get_running_loop().time() + RECORDED_WITHIN_SECONDS)
    pause = 0.005
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(HeimdexError):
            row = await gateway.database.job(message.job_id, message.tenant)
            asked = True
            if row is not None and row.rank >= after.rank:
                return Changed(row, True)
        await asyncio.sleep(pause)
        pause = min(0.1, pause * 2)
    return Changed(after, False, asked)


async def _check_it_held(gateway: Gateway, message: AnyJobMessage, stored: Stored, changed: Changed) -> None:
    """Raise Conflict if the job had ended before its cancel was stored, Unanswerable if that cannot be told.

    Between our looks and our publish all that came after `stored` may have been recorded, and left the stream.
    """
    job = changed.job
    if changed.recorded and job.run == message.run and job.status != "canceled":
        raise Conflict(ENDED.format(job.status))
    if not changed.asked and not await gateway.reads.is_unrecorded(stored.sequence):
        raise Unanswerable("Whether the job ended before it was canceled cannot be told now. Ask in a few seconds.")
