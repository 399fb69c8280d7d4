"""Submit a job, and ask how it is."""

from typing import Annotated

from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter

from heimdex_gateway import documentation
from heimdex_gateway.problems import Problem
from heimdex_gateway.routes.answers import NOT_FOUND, AnyRequest, encoded, gateway_of, in_time, job_id_of, json_body
from heimdex_gateway.schemas import LARGEST_BODY_BYTES, JobAccepted, JobObject, job_object, job_request
from heimdex_gateway.submissions import submit


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
    gateway = gateway_of(request)
    wanted = job_request(await json_body(request), gateway.pipelines)
    job_id = await in_time(submit(gateway, wanted, traceparent))
    return encoded(JobAccepted(job_id), 202, {"Location": f"/jobs/{job_id}"})


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
    gateway = gateway_of(request)
    job = await in_time(gateway.reads.job(job_id_of(job_id)))
    if job is None:
        raise Problem(404, NOT_FOUND)
    return encoded(job_object(job))
