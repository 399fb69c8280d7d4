"""The routes that cancel jobs and retry finished ones."""

from collections.abc import Collection
from typing import Annotated, Literal, cast

from litestar import Response, post
from litestar.params import QueryParameter

from heimdex_contracts.job_object import job_object
from heimdex_gateway.dependencies import gateway_of, tenant_of
from heimdex_gateway.jobs.change import Changed
from heimdex_gateway.jobs.retry import From
from heimdex_gateway.jobs.status import JobNotFound
from heimdex_gateway.openapi import request_bodies, responses
from heimdex_gateway.problem import Problem
from heimdex_gateway.routes.parameters import Include, JobId, Traceparent
from heimdex_gateway.routes.request import (
    AnyRequest,
    check_query,
    check_type,
    encoded,
    in_time,
    job_id_of,
)
from heimdex_gateway.schemas import job_list, parameters
from heimdex_gateway.schemas.jobs import JobsRetried

RETRYABLE = ("failed", "canceled")
#: How much longer a request that retries many jobs may take than one that retries a single job.
MANY_SECONDS = 10.0


@post(
    "/jobs/{job_id:str}/cancel",
    status_code=200,
    operation_id="cancelJob",
    summary="Cancel a job",
    tags=["jobs"],
    responses=responses.CANCEL_ANSWERS | {422: responses.WRONG_INCLUDE},
)
async def cancel_job(
    request: AnyRequest, job_id: JobId, traceparent: Traceparent = None, include: Include = None
) -> Response[bytes]:
    """A queued job never starts; a running stage is interrupted. Returns 409 if the job is in a terminal state."""
    check_query(request, "include")
    included = parameters.include(include)
    gateway = gateway_of(request)
    work = gateway.cancel.cancel(tenant_of(request), job_id_of(job_id), traceparent, included)
    return _answer(await in_time(request, work), included)


@post(
    "/jobs/{job_id:str}/retry",
    status_code=200,
    operation_id="retryJob",
    summary="Retry a failed or canceled job",
    tags=["jobs"],
    responses=responses.RETRY_ANSWERS | {422: responses.UNKNOWN_FROM},
)
async def retry_job(
    request: AnyRequest,
    job_id: JobId,
    start_from: Annotated[
        str | None,
        QueryParameter(
            name="from",
            required=False,
            description="`failed` (default): start at the stage where the job stopped; `start`: at the first stage",
        ),
    ] = None,
    traceparent: Traceparent = None,
    include: Include = None,
) -> Response[bytes]:
    """Starts the next run of a failed or canceled job and keeps its history. Returns 409 for any other job."""
    check_query(request, "from", "include")
    if start_from not in {None, "failed", "start"}:
        raise Problem(422, f"The parameter 'from' must be 'failed' or 'start', not {start_from[:60]!r}.", field="from")
    start, included = cast("From", start_from or "failed"), parameters.include(include)
    gateway = gateway_of(request)
    work = gateway.retry.retry(tenant_of(request), job_id_of(job_id), start, traceparent, included)
    return _answer(await in_time(request, work), included)


@post(
    "/jobs/retry",
    status_code=200,
    operation_id="retryJobs",
    summary="Retry failed or canceled jobs",
    tags=["jobs"],
    operation_class=request_bodies.RetryManyOperation,
    responses=responses.RETRY_MANY_ANSWERS,
)
async def retry_jobs(request: AnyRequest) -> Response[bytes]:
    """Retries the newest jobs first, up to 500 per request. If `more` is true, repeat the request."""
    gateway = gateway_of(request)
    query = job_list.single(request.query_params.multi_items())
    for name in query:
        if name not in {"status", "type"}:
            raise Problem(
                422, f"There is no parameter {name[:60]!r}; the parameters are 'status' and 'type'.", field=name[:100]
            )
    status = job_list.one_of("status", query.get("status"), RETRYABLE)
    if status is None:
        raise Problem(422, "The parameter 'status' is missing; it must be 'failed' or 'canceled'.", field="status")
    job_type = job_list.job_type(query.get("type"), gateway.pipelines)
    await check_type(request, job_type)
    work = gateway.retry.retry_all(tenant_of(request), status, job_type)
    count, more = await in_time(request, work, MANY_SECONDS)
    return encoded(JobsRetried(count, more))


def _answer(changed: Changed | None, include: Collection[str]) -> Response[bytes]:
    if changed is None:
        raise JobNotFound
    status: Literal[200, 202] = 200 if changed.recorded else 202
    return encoded(job_object(changed.job, include), status)
