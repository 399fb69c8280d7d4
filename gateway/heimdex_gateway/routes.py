"""The routes: decode, one call, encode."""

import asyncio
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter

from heimdex_contracts import messages
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.publishing import Refused
from heimdex_gateway import documentation
from heimdex_gateway.database import DatabaseUnavailable
from heimdex_gateway.problems import Problem
from heimdex_gateway.reads import Unanswerable
from heimdex_gateway.room import RETRY_AFTER_SECONDS, NoRoom
from heimdex_gateway.schemas import (
    LARGEST_BODY_BYTES,
    DependencyState,
    Health,
    JobAccepted,
    JobObject,
    Readiness,
    job_object,
    job_request,
)
from heimdex_gateway.service import Gateway
from heimdex_gateway.submissions import submit

_json: Final = msgspec.json.Encoder()
JSON: Final = "application/json"
NOT_FOUND: Final = "Job not found"

AnyRequest = Request[Any, Any, Any]


def _answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(_json.encode(body), status_code=status, media_type=JSON, headers=headers)


@get(
    "/healthz",
    operation_id="health",
    summary="Is the process alive?",
    tags=["operations"],
    sync_to_thread=False,
)
def healthz(request: AnyRequest) -> Health:
    """Liveness only: answers while NATS and Postgres are down."""
    gateway: Gateway = request.app.state.gateway
    return gateway.health


@get(
    "/readyz",
    operation_id="ready",
    summary="Can it do its work now?",
    tags=["operations"],
    responses={503: ResponseSpec(Readiness, description="A dependency is away; each says its state.")},
)
async def readyz(request: AnyRequest) -> Response[Readiness]:
    """200 when NATS and Postgres can be used, 503 otherwise; names each one's state."""
    gateway: Gateway = request.app.state.gateway
    nats = DependencyState(True, "connected")
    if not gateway.broker.connected:
        nats = DependencyState(False, "not connected")
    elif not gateway.topology.ready.is_set():
        nats = DependencyState(False, "the streams are not there yet")
    postgres = DependencyState(True, "connected")
    try:
        await gateway.database.check()
    except DatabaseUnavailable as error:
        postgres = DependencyState(False, str(error))
    away = [name for name, state in (("NATS", nats), ("Postgres", postgres)) if not state.ok]
    detail = "ready" if not away else f"{' and '.join(away)} cannot be used now."
    return Response(Readiness(not away, detail, nats, postgres), status_code=503 if away else 200, media_type=JSON)


@post(
    "/jobs",
    status_code=202,
    operation_id="submitJob",
    summary="Submit a job",
    tags=["jobs"],
    operation_class=documentation.SubmitOperation,
    request_max_body_size=LARGEST_BODY_BYTES,
    responses={
        202: ResponseSpec(
            JobAccepted,
            description="Stored by JetStream: it will run.",
            generate_examples=False,
            examples=[Example(id="accepted", value={"job_id": documentation.EXAMPLE_ID})],
        ),
        **documentation.SUBMIT_ERRORS,
    },
)
async def submit_job(
    request: AnyRequest,
    traceparent: Annotated[
        str | None,
        Parameter(header="traceparent", required=False, description=documentation.TRACEPARENT_HEADER),
    ] = None,
) -> Response[bytes]:
    """Answers 202 only after the job is stored; from then on it is never lost."""
    gateway: Gateway = request.app.state.gateway
    body = await _json_body(request)
    wanted = job_request(body, gateway.pipelines)
    try:
        await gateway.room.take()
        job_id = await submit(gateway.publisher, gateway.pipelines, wanted, traceparent)
    except BrokerUnavailable:
        raise Problem(
            500, "NATS did not store the job in time, so it may or may not run. Try again in a few seconds."
        ) from None
    except (NoRoom, Refused) as error:
        raise Problem(503, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)}) from None
    return _answer(JobAccepted(job_id), 202, {"Location": f"/jobs/{job_id}"})


@get(
    "/jobs/{job_id:str}",
    operation_id="getJob",
    summary="How is a job?",
    tags=["jobs"],
    responses={
        200: ResponseSpec(
            JobObject, description="The job.", generate_examples=False, examples=documentation.JOB_EXAMPLES
        ),
        **documentation.READ_ERRORS,
    },
)
async def get_job(
    request: AnyRequest, job_id: Annotated[str, Parameter(description="the id that POST answered")]
) -> Response[bytes]:
    """Never an older answer than one already given."""
    gateway: Gateway = request.app.state.gateway
    if not messages.is_job_id(job_id):
        raise Problem(404, NOT_FOUND)
    try:
        async with asyncio.timeout(4.5):
            job = await gateway.reads.job(job_id.lower())
    except Unanswerable as error:
        raise Problem(500, str(error)) from None
    except TimeoutError:
        raise Problem(500, "The answer could not be had in time. Try again in a few seconds.") from None
    if job is None:
        raise Problem(404, NOT_FOUND)
    return _answer(job_object(job))


async def _json_body(request: AnyRequest) -> bytes:
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type != JSON:
        length = request.headers.get("content-length")
        if not header and length in {None, "0"} and "transfer-encoding" not in request.headers:
            return b""
        given = f"not as {content_type[:100]}" if header else "which the Content-Type header must say"
        raise Problem(415, f"Send the job as application/json, {given}.")
    return await request.body()
