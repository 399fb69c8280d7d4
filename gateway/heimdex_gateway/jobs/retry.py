"""Runs ended jobs again: one publish, as the successor of the newest message."""

import asyncio
from typing import Final, Literal

from heimdex_contracts import lifecycle
from heimdex_contracts.errors import HeimdexError, Superseded
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due, Failed
from heimdex_contracts.pipelines import Pipeline
from heimdex_contracts.runtime.jetstream.connection import Stored
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.jobs import change
from heimdex_gateway.jobs.change import Changed, Conflict
from heimdex_gateway.jobs.repository import JobQuery
from heimdex_gateway.jobs.status import StateUnavailable

#: Jobs run again at the same time by one request for many.
AT_ONCE: Final = 20


From = Literal["failed", "start"]


async def retry(
    gateway: Gateway, tenant: str, job_id: str, start_from: From, traceparent: str | None, *, wait: bool = True
) -> Changed | None:
    """Run a failed or canceled job again, as its next run; None where there is no such job.

    start_from: the stage where it ended, or the first. wait: until it is recorded.
    Raises Conflict for a job that is not failed or canceled.
    """
    answer_by = asyncio.get_running_loop().time() + change.ANSWERED_WITHIN_SECONDS
    leader_knows = False
    for _ in range(change.LOOKS):
        job, found = await change.job_and_newest(gateway, tenant, job_id)
        if job is None:
            return None
        if not leader_knows and (found is None or found[1].step < job.step):
            # Older than the row: left over, or the end that the row tells has not reached the stream's leader yet. The
            # next run must follow that end, not what lies before it.
            leader_knows = await gateway.status.leader_knows_recorded()
            if gateway.broker.replicated:
                await asyncio.sleep(0 if leader_knows else change.BEHIND_SECONDS)
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
        message = retried(last, found[0] if found else None, job, pipeline, start_from, traceparent)
        try:
            async with gateway.admission.reserve():
                await change.publish(gateway, message, found[0].sequence if found else 0)
        except Superseded:
            if not await change.is_recorded(gateway, message):
                continue
        return (
            await change.wait_until_visible(gateway, message, answer_by)
            if wait
            else Changed(lifecycle.snapshot(message), False)
        )
    raise StateUnavailable("The job's state changes too fast to run it again. Try again.")


def retried(
    last: Failed | Canceled,
    stored: Stored | None,
    job: Snapshot,
    pipeline: Pipeline,
    start_from: From = "failed",
    traceparent: str | None = None,
) -> Due:
    """The first message of the job's next run. stored: where `last` lies, if the stream still has it."""
    stage = pipeline.first_stage
    if start_from == "failed" and last.stage in pipeline.stage_names:
        stage = last.stage or stage
    return Due(
        **change.succeed(last, stored, job, traceparent),
        run=last.run + 1,
        stage=stage,
        reason="retried",
        progress=pipeline.progress(stage),
        finished=last.finished[: pipeline.stage_names.index(stage)],
    )


async def retry_all(gateway: Gateway, tenant: str, status: str, job_type: str | None, most: int) -> tuple[int, bool]:
    """Run again this tenant's jobs of this status and of a type that is known here, newest first, at most so many.

    Returns how many, and whether there are more: also where the rest must wait, since there is no room for more jobs or
    NATS went away meanwhile. Raises as `retry`, and DatabaseUnavailable, where none was run again.
    """
    # One of a type that is not known can never be run again: in the list, it would be one more that there is for ever.
    found: list[Snapshot] = []
    for known in (job_type,) if job_type else gateway.pipelines.types:
        wanted = JobQuery(status=status, type=known, created_after=None, created_before=None, limit=most, cursor=None)
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
