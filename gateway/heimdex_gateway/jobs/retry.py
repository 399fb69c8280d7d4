"""Retries jobs with one publish each: the first message of the next run, as the successor of the newest message."""

import asyncio
from collections.abc import Collection
from typing import Final, Literal

from heimdex_contracts import lifecycle, routes
from heimdex_contracts.errors import HeimdexError, Superseded
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import Canceled, Due, Failed
from heimdex_contracts.params import ParamsRefused, validated
from heimdex_contracts.pipelines import Pipeline, Pipelines
from heimdex_gateway.jobs import change
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.change import Changed, Conflict, JobChanges
from heimdex_gateway.jobs.repository import Cursor, JobQuery, KeptMessage
from heimdex_gateway.jobs.status import Newest, StateUnavailable

#: How many jobs one request retries, and how many of these concurrently.
MAX_JOBS: Final = 500
AT_ONCE: Final = 20
#: The pages of jobs that one request examines. It needs more than one only if some of its jobs cannot be retried.
MAX_PAGES: Final = 10

From = Literal["failed", "start"]
NO_LONGER_DECLARED: Final = (
    "This gateway does not have the job type {!r} any more, so the stages of a run from the start are not known: "
    "retry the job from the stage where it ended (from=failed), or deploy the type again."
)

PARAMS_DO_NOT_FIT: Final = (
    "The params of this job do not fit the job type {!r} any more: retry the job from the stage where it ended "
    "(from=failed), or submit a new one."
)


class Retry:
    """The use case that retries one job or many. max_jobs: as MAX_JOBS."""

    def __init__(
        self, changes: JobChanges, admission: Admission, pipelines: Pipelines, max_jobs: int = MAX_JOBS
    ) -> None:
        self._changes = changes
        self._admission = admission
        self._pipelines = pipelines
        self._max_jobs = max_jobs

    async def retry(
        self,
        tenant: str,
        job_id: str,
        start_from: From,
        traceparent: str | None,
        include: Collection[str] = (),
        *,
        wait: bool = True,
    ) -> Changed | None:
        """Start the next run of a failed or canceled job. Returns None if the tenant has no such job.

        start_from: "failed" for the stage where the job failed or was canceled, along the route that it had; "start"
        for the first stage of its type as this gateway declares it.
        include: as in Database.job. wait: whether to wait until the new run is recorded. Raises Conflict if the job is
        neither failed nor canceled, if the stages of the run are not known, or if the job's params do not fit its type
        any more.
        """
        answer_by = self._changes.answer_by()
        status = self._changes.status
        leader_knows = False
        for _ in range(change.MAX_READS):
            job, newest = await status.job_and_newest(job_id, tenant)
            if job is None:
                return None
            if not leader_knows and (newest is None or newest.message.step < job.step):
                # The stream's newest message is older than the row: it is a leftover message, or the leader does not
                # have the terminal event yet. The next run must follow that event, not a message before it.
                leader_knows = await status.leader_knows_recorded()
                if self._changes.broker.replicated:
                    await asyncio.sleep(0 if leader_knows else change.BEHIND_SECONDS)
                    continue
            if job.status not in {"failed", "canceled"}:
                state = "is completed" if job.status == "completed" else "has not finished"
                raise Conflict(f"The job {state}: only a failed or canceled job can be retried.")
            # A terminal event leaves the stream when it is recorded. The job's row keeps a copy.
            if newest is not None and newest.message.step == job.step:
                kept: Newest | KeptMessage | None = newest
            else:
                kept = await self._changes.database.last_message(job_id)
            if kept is None or not isinstance(last := kept.message, Failed | Canceled):
                continue  # recorded, or retried by another request, between the two reads
            pipeline = self._pipelines.by_type.get(last.type)
            message = retried(last, newest.sequence if newest else None, job, pipeline, start_from, traceparent)
            if message.stage not in self._pipelines.stage_names:
                await self._changes.check_queue(message.stage)
            try:
                async with self._admission.reserve():
                    await self._changes.publish(message, newest.sequence if newest else 0, kept)
            except Superseded:
                if not await self._changes.is_recorded(message):
                    continue
            if not wait:
                return Changed(lifecycle.snapshot(message), False)
            return await self._changes.wait_until_visible(message, answer_by, include)
        raise StateUnavailable("The job's state changes too fast to retry it. Try again.")

    async def retry_all(self, tenant: str, status: str, job_type: str | None) -> tuple[int, bool]:
        """Retry this tenant's jobs with this status, newest first, at most `max_jobs`; of any type, or of this one.

        Returns how many were retried, and whether there are more. There are also more if the rest was not retried
        because the queue became full or NATS went down. If none was retried, raises as `retry`, and StateUnavailable
        if Postgres is down. Jobs that cannot be retried are skipped; they alone do not count as more.
        """
        limit = self._max_jobs
        done, cursor, more = 0, None, True
        obstacles: list[HeimdexError] = []
        for _ in range(MAX_PAGES):
            query = JobQuery(
                status=status, type=job_type, created_after=None, created_before=None, limit=limit, cursor=cursor
            )
            found = await self._changes.status.jobs(query, tenant)
            page = found.jobs[: limit - done]
            more = found.more or len(found.jobs) > len(page)
            done += await self._retry_page(tenant, page, obstacles)
            if obstacles or not more or done >= limit:
                break
            cursor = Cursor(page[-1].created_at, page[-1].job_id)
        if obstacles and not done:
            raise obstacles[0]
        return done, bool(obstacles) or (more and done > 0)

    async def _retry_page(self, tenant: str, jobs: list[Snapshot], obstacles: list[HeimdexError]) -> int:
        """Retry these jobs and return how many were retried. The first error that is not a job's own is added."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def retry_one(job: Snapshot) -> int:
            async with slots:
                if obstacles:
                    return 0  # the same obstacle applies to this job
                try:
                    return int(await self.retry(tenant, job.job_id, "failed", None, wait=False) is not None)
                except Conflict:
                    return 0  # another request has retried it, or its stages are not known
                except HeimdexError as error:
                    obstacles.append(error)
                    return 0

        # Every retry that was started is awaited, so that no job is retried after the response.
        return sum(await asyncio.gather(*(retry_one(job) for job in jobs)))


def retried(
    last: Failed | Canceled,
    sequence: int | None,
    job: Snapshot,
    pipeline: Pipeline | None,
    start_from: From = "failed",
    traceparent: str | None = None,
) -> Due:
    """Build the first message of the job's next run.

    sequence: that of `last`, None if it has left the stream. pipeline: the job's type as this gateway declares it, None
    if it does not. From "failed", the job keeps its route, which may be older or newer than the pipeline; from "start"
    it gets the pipeline's, and its params must fit the pipeline. They stay as they were stored: a default that the type
    has gained since is filled in by the worker. Raises Conflict if a pipeline is required and there is none, and if the
    params do not fit.
    """
    if pipeline is None and (start_from == "start" or not last.route):
        raise Conflict(NO_LONGER_DECLARED.format(last.type))
    if start_from == "start" and pipeline is not None:
        route, stage = pipeline.stage_names, None
        try:
            validated(last.params, pipeline)
        except ParamsRefused as error:
            raise Conflict(f"{PARAMS_DO_NOT_FIT.format(last.type)} {error}", error.field) from None
    else:
        # A job of a release without routes follows the pipeline of today.
        route, stage = routes.route_of(last, pipeline), last.stage
    stage = stage if stage in route else route[0]
    done = route[: route.index(stage)]
    return Due(
        **change.succeed(last, sequence, job, traceparent) | {"route": route},
        run=last.run + 1,
        stage=stage,
        reason="retried",
        progress=routes.progress_along(route, pipeline, stage),
        finished=tuple(run for run in last.finished if run.stage in done),
    )
