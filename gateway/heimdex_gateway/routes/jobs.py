"""The routes that submit, list and get jobs."""

from typing import Annotated

from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter

from heimdex_contracts import tracing
from heimdex_contracts.job_object import JobObject, job_object
from heimdex_contracts.messages import Due
from heimdex_gateway.dependencies import gateway_of, tenant_of
from heimdex_gateway.jobs.status import JobNotFound
from heimdex_gateway.jobs.wait import until_finished
from heimdex_gateway.openapi import examples, request_bodies, responses
from heimdex_gateway.routes.parameters import IdempotencyKey, Include, JobId, Traceparent
from heimdex_gateway.routes.request import (
    AnyRequest,
    check_query,
    check_type,
    encoded,
    in_time,
    job_id_of,
    json_body,
    while_connected,
)
from heimdex_gateway.schemas import job_list, job_request, parameters
from heimdex_gateway.schemas.job_request import MAX_BODY_BYTES
from heimdex_gateway.schemas.jobs import JobAccepted, JobsAccepted
from heimdex_gateway.schemas.parameters import wait_seconds


@post(
    "/jobs",
    status_code=202,
    operation_id="submitJob",
    summary="Submit a job",
    tags=["jobs"],
    operation_class=request_bodies.SubmitOperation,
    request_max_body_size=MAX_BODY_BYTES,
    responses={
        202: ResponseSpec(
            JobAccepted,
            description="JetStream has stored the job: it will run.",
            generate_examples=False,
            examples=[Example(id="accepted", value={"job_id": examples.EXAMPLE_ID})],
        ),
        **responses.SUBMIT_ERRORS,
    },
)
async def submit_job(
    request: AnyRequest,
    traceparent: Traceparent = None,
    idempotency_key: IdempotencyKey = None,
) -> Response[bytes]:
    """Returns 202 only after the job is stored. From then on it is never lost."""
    check_query(request)
    gateway = gateway_of(request)
    body = await json_body(request)
    requested = job_request.job(body, gateway.pipelines, gateway.callbacks)
    if requested.callback_url is not None:
        await gateway.callbacks.look_up([("callback_url", requested.callback_url)])
    job = gateway.submit.new_job(tenant_of(request), requested, traceparent)
    if idempotency_key is None:
        await in_time(request, gateway.submit.submit([job]))
        job_id = job.job_id
    else:
        (job_id,) = await _once(request, body, [job])
    return encoded(JobAccepted(job_id), 202, {"Location": f"/jobs/{job_id}"})


@post(
    "/jobs/batch",
    status_code=202,
    operation_id="submitJobs",
    summary="Submit a batch of jobs",
    tags=["jobs"],
    operation_class=request_bodies.BatchOperation,
    request_max_body_size=MAX_BODY_BYTES,
    responses=responses.BATCH_ANSWERS,
)
async def submit_jobs(
    request: AnyRequest, traceparent: Traceparent = None, idempotency_key: IdempotencyKey = None
) -> Response[bytes]:
    """Accepts 1 to 1,000 jobs. Returns 202 only after all of them are stored; otherwise none of them runs."""
    check_query(request)
    gateway = gateway_of(request)
    body = await json_body(request)
    requested = job_request.jobs(body, gateway.pipelines, gateway.callbacks)
    if urls := job_request.callback_urls(requested):
        await gateway.callbacks.look_up(urls)
    trace = tracing.start(traceparent) if traceparent else None
    tenant = tenant_of(request)
    jobs = [gateway.submit.new_job(tenant, entry, trace) for entry in requested]
    if idempotency_key is None:
        await in_time(request, gateway.submit.submit(jobs))
        job_ids = [job.job_id for job in jobs]
    else:
        job_ids = await _once(request, body, jobs)
    return encoded(JobsAccepted(job_ids), 202)


async def _once(request: AnyRequest, body: bytes, jobs: list[Due]) -> list[str]:
    key = parameters.read_key(request.headers.getall("Idempotency-Key"))
    digest = parameters.digest(body, [job.params for job in jobs])
    return await in_time(request, gateway_of(request).idempotent_submit.submit(key, digest, jobs))


@get(
    "/jobs",
    operation_id="listJobs",
    summary="List jobs",
    tags=["jobs"],
    operation_class=request_bodies.ListOperation,
    responses=responses.LIST_ANSWERS,
)
async def list_jobs(request: AnyRequest) -> Response[bytes]:
    """Returns jobs as the status store has recorded them, newest first. A new job appears a moment after its 202."""
    gateway = gateway_of(request)
    query = job_list.single(request.query_params.multi_items())
    filters, include = job_list.read_query(query, gateway.pipelines), parameters.include(query.get("include"))
    page = await in_time(request, gateway.status.jobs(filters, tenant_of(request), include))
    if not page.jobs:
        await check_type(request, filters.type)
    return encoded(job_list.page(page, include))


@get(
    "/jobs/{job_id:str}",
    operation_id="getJob",
    summary="Get a job",
    tags=["jobs"],
    responses={
        200: ResponseSpec(JobObject, description="The job.", generate_examples=False, examples=responses.JOB_EXAMPLES),
        **responses.READ_ERRORS,
    },
)
async def get_job(
    request: AnyRequest,
    job_id: JobId,
    wait: Annotated[
        str | None,
        Parameter(
            required=False, description="respond when the job is finished, or after this many seconds (0 to 300)"
        ),
    ] = None,
    include: Include = None,
) -> Response[bytes]:
    """Returns the current state of the job, and never an older state than one already returned."""
    check_query(request, "wait", "include")
    gateway, tenant = gateway_of(request), tenant_of(request)
    seconds, included, parsed_id = wait_seconds(wait), parameters.include(include), job_id_of(job_id)
    if seconds > 0:
        finished = until_finished(gateway.status, gateway.subscriptions, tenant, parsed_id, seconds, included)
        job = await in_time(request, while_connected(request, finished), seconds)
    else:
        job = await in_time(request, gateway.status.job(parsed_id, tenant, included))
    if job is None:
        raise JobNotFound
    return encoded(job_object(job, included))
