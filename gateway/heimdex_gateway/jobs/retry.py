"""Runs jobs again: one publish, as the successor of the newest message."""

import asyncio
from typing import Final, Literal

from heimdex_contracts import lifecycle
from heimdex_contracts.errors import HeimdexError, Superseded
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due, Failed
from heimdex_contracts.pipelines import Pipeline, Pipelines
from heimdex_gateway.jobs import change
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.change import Changed, Conflict, JobChanges
from heimdex_gateway.jobs.repository import DatabaseUnavailable, JobQuery
from heimdex_gateway.jobs.status import StateUnavailable

#: Jobs run again at the same time by one request for many.
AT_ONCE: Final = 20

From = Literal["failed", "start"]


class Retry:
    """The use case, for one job and for many."""

    def __init__(self, changes: JobChanges, admission: Admission, pipelines: Pipelines) -> None:
        self._changes = changes
        self._admission = admission
        self._pipelines = pipelines

    async def retry(
        self, tenant: str, job_id: str, start_from: From, traceparent: str | None, *, wait: bool = True
    ) -> Changed | None:
        """Run a failed or canceled job again, as its next run; None where the tenant has no such job.

        start_from: the stage where it ended, or the first. wait: until it is recorded.
        Raises Conflict for a job that is not failed or canceled.
        """
        answer_by = change.answer_by()
        status = self._changes.status
        leader_knows = False
        for _ in range(change.LOOKS):
            job, newest = await status.job_and_newest(job_id, tenant)
            if job is None:
                return None
            if not leader_knows and (newest is None or newest.message.step < job.step):
                # Older than the row: a leftover, or the terminal event of the row has not reached the stream's leader
                # yet. The next run must follow that event, not what lies before it.
                leader_knows = await status.leader_knows_recorded()
                if self._changes.broker.replicated:
                    await asyncio.sleep(0 if leader_knows else change.BEHIND_SECONDS)
                    continue
            if job.status not in {"failed", "canceled"}:
                why = "completed" if job.status == "completed" else "not ended"
                raise Conflict(f"The job has {why}: only a failed or canceled one can be run again.")
            # A terminal event leaves the stream once it is recorded; the job's row keeps it.
            if newest is not None and newest.message.step == job.step:
                last: AnyJobMessage | None = newest.message
            else:
                last = await self._changes.database.last_message(job_id)
            if not isinstance(last, Failed | Canceled):
                continue  # recorded, or run again by somebody else, between the two reads
            pipeline = self._pipelines.by_type.get(last.type)
            if pipeline is None:
                raise Conflict(f"This gateway knows no job type {last.type!r} any more.")
            message = retried(last, newest.sequence if newest else None, job, pipeline, start_from, traceparent)
            try:
                async with self._admission.reserve():
                    await self._changes.publish(message, newest.sequence if newest else 0)
            except Superseded:
                if not await self._changes.is_recorded(message):
                    continue
            if not wait:
                return Changed(lifecycle.snapshot(message), False)
            return await self._changes.wait_until_visible(message, answer_by)
        raise StateUnavailable("The job's state changes too fast to run it again. Try again.")

    async def retry_all(self, tenant: str, status: str, job_type: str | None, limit: int) -> tuple[int, bool]:
        """Run again this tenant's jobs of this status and of a type that is known here, newest first, up to `limit`.

        Returns how many, and whether there are more: also where the rest must wait, since the queue is full or NATS
        went down meanwhile. Raises as `retry`, and StateUnavailable without Postgres, where none was run again.
        """
        # A job of a type that is not known cannot be run again: if it were counted, there would always be more.
        jobs: list[Snapshot] = []
        for known in (job_type,) if job_type else self._pipelines.types:
            query = JobQuery(
                status=status, type=known, created_after=None, created_before=None, limit=limit, cursor=None
            )
            try:
                jobs += await self._changes.database.jobs(query, tenant)
            except DatabaseUnavailable:
                raise StateUnavailable(
                    "Postgres cannot be reached, and ended jobs are found in it. Try again."
                ) from None
        jobs.sort(key=lambda job: (job.created_at, job.job_id), reverse=True)
        slots = asyncio.Semaphore(AT_ONCE)
        obstacles: list[HeimdexError] = []

        async def one(job: Snapshot) -> int:
            async with slots:
                if obstacles:
                    return 0  # it stands in the way of this one too
                try:
                    return int(await self.retry(tenant, job.job_id, "failed", None, wait=False) is not None)
                except Conflict:
                    return 0  # somebody else was faster
                except HeimdexError as error:
                    obstacles.append(error)
                    return 0

        # Every one that was begun is awaited: none runs again after the answer.
        done = sum(await asyncio.gather(*(one(job) for job in jobs[:limit])))
        if obstacles and not done:
            raise obstacles[0]
        return done, bool(obstacles) or len(jobs) > limit


def retried(
    last: Failed | Canceled,
    sequence: int | None,
    job: Snapshot,
    pipeline: Pipeline,
    start_from: From = "failed",
    traceparent: str | None = None,
) -> Due:
    """The first message of the job's next run. sequence: that of `last`, if the stream still has it."""
    stage = pipeline.first_stage
    if start_from == "failed" and last.stage in pipeline.stage_names:
        stage = last.stage or stage
    return Due(
        **change.succeed(last, sequence, job, traceparent),
        run=last.run + 1,
        stage=stage,
        reason="retried",
        progress=pipeline.progress(stage),
        finished=last.finished[: pipeline.stage_names.index(stage)],
    )
