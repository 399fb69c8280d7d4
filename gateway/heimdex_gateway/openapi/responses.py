"""Responses of each route for the OpenAPI document: bodies, and every error.

An example without a value gets it when the document is finished: from a job type that the gateway has.
"""

from typing import Final

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example, SecurityScheme

from heimdex_contracts.job_object import JobObject
from heimdex_gateway import errors
from heimdex_gateway.openapi.examples import EXAMPLE_ID
from heimdex_gateway.problem import ErrorBody
from heimdex_gateway.schemas.events import EventList
from heimdex_gateway.schemas.job_list import JobList
from heimdex_gateway.schemas.job_types import JobTypes
from heimdex_gateway.schemas.jobs import JobsAccepted, JobsRetried

TRACEPARENT_HEADER: Final = "W3C trace context; the messages of the job carry its trace ID"


def problem(description: str, example: str, **extra: str) -> ResponseSpec:
    """An error response with an example of its `detail`; `extra` holds further keys of the example."""
    return ResponseSpec(
        data_container=ErrorBody,
        description=description,
        generate_examples=False,
        examples=[Example(id="error", value={"detail": example, **extra})],
    )


#: The name of the security scheme in the OpenAPI document.
SCHEME: Final = "key"
KEY: Final = SecurityScheme(type="http", scheme="bearer", description="An API key; the operator issues it.")

UNAVAILABLE: Final = problem(
    "NATS or Postgres is required for the response and cannot be reached. Try again.",
    "NATS cannot be reached, and without it the job's state cannot be determined. Try again in a few seconds.",
)

FULL: Final = "The queue is full: 1000000 jobs are waiting or running, and the limit is 1000000. Try again later."
SUBMIT_ERRORS: Final = {
    400: problem("The body is not JSON.", "The body is not valid JSON: Input data was truncated."),
    413: problem(
        "The body exceeds 1 MiB, or the params of a job 64 KiB; `field` then names them.", errors.BODY_TOO_LARGE
    ),
    415: problem("The content type is not JSON.", "Send the body as application/json, not as text/plain."),
    422: problem(
        "The body is JSON but not a valid job; `field` names the invalid field.",
        "",  # names the stages of a job type of the gateway
        field="fail_at_stage",
    ),
    500: UNAVAILABLE,
    503: problem(
        "The queue is full; `Retry-After` gives the seconds to wait.",
        FULL,
    ),
}
LIST_ANSWERS: Final = {
    200: ResponseSpec(
        JobList,
        description="A page of jobs.",
        generate_examples=False,
        examples=[Example(id="page")],
    ),
    422: problem(
        "A parameter is invalid; `field` names it.",
        "The parameter 'limit' must be a whole number from 1 to 1000, not '0'.",
        field="limit",
    ),
    500: UNAVAILABLE,
}
NO_PARAMETERS: Final = problem(
    "The operation has no query parameters.", "There is no parameter 'form'; the operation has none.", field="form"
)
WRONG_INCLUDE: Final = problem(
    "The parameter is invalid.",
    "The parameter 'include' takes 'params' and 'outputs', separated by a comma, not 'output'.",
    field="include",
)
JOB_TYPES_ANSWERS: Final = {
    200: ResponseSpec(
        JobTypes,
        description="The job types.",
        generate_examples=False,
        examples=[Example(id="types")],
    ),
    422: NO_PARAMETERS,
}
EVENTS_ANSWERS: Final = {
    200: ResponseSpec(
        EventList,
        description="The events of the job in order. As text/event-stream: the same, live, with `progress` events.",
        generate_examples=False,
        examples=[Example(id="history")],
    ),
    404: problem("The job does not exist.", "Job not found"),
    422: NO_PARAMETERS,
    500: UNAVAILABLE,
}


def _changes(example: Example, conflict: str, full: str) -> dict[int, ResponseSpec]:
    """The responses to a cancel or a retry of one job.

    conflict: the `detail` of a 409; full: the reason of a 503, the start of a sentence.
    """
    return {
        200: ResponseSpec(
            JobObject, description="The change is stored and recorded.", generate_examples=False, examples=[example]
        ),
        202: ResponseSpec(
            JobObject,
            description="The change is stored; the status store has not recorded it yet.",
            generate_examples=False,
            examples=[example],
        ),
        404: problem("The job does not exist.", "Job not found"),
        409: problem("The job's state does not allow the change.", conflict),
        500: UNAVAILABLE,
        503: problem(f"{full}; `Retry-After` gives the seconds to wait.", FULL),
    }


CANCEL_ANSWERS: Final = _changes(
    Example(id="canceled", summary="a canceled job"),
    "The job is already completed: only an unfinished job can be canceled.",
    "JetStream has no space for the message that cancels the job",
)
RETRY_ANSWERS: Final = _changes(
    Example(id="again", summary="a job that runs again"),
    "The job is completed: only a failed or canceled job can be retried.",
    "The queue is full",
)
UNKNOWN_FROM: Final = problem(
    "The parameter is invalid.", "The parameter 'from' must be 'failed' or 'start', not 'middle'.", field="from"
)
WRONG_WAIT: Final = problem(
    "The parameter is invalid.",
    "The parameter 'wait' must be a number of seconds from 0 to 300, not 'long'.",
    field="wait",
)
JOB_EXAMPLES: Final = [
    Example(id="processing", summary="a running job"),
    Example(id="completed", summary="a completed job"),
    Example(id="failed", summary="a failed job"),
]
READ_ERRORS: Final = {422: WRONG_WAIT, 404: problem("The job does not exist.", "Job not found"), 500: UNAVAILABLE}


BATCH_ANSWERS: Final = {
    202: ResponseSpec(
        JobsAccepted,
        description="JetStream has stored all jobs: they will run.",
        generate_examples=False,
        examples=[Example(id="accepted", value={"job_ids": [EXAMPLE_ID]})],
    ),
    **SUBMIT_ERRORS,
}
RETRY_MANY_ANSWERS: Final = {
    200: ResponseSpec(
        JobsRetried,
        description="`retried` jobs run again. If `more` is true, further jobs match: repeat the request.",
        generate_examples=False,
        examples=[Example(id="retried", value={"retried": 17, "more": False})],
    ),
    422: problem(
        "A parameter is invalid; `field` names it.",
        "The parameter 'status' is missing; it must be 'failed' or 'canceled'.",
        field="status",
    ),
    500: UNAVAILABLE,
    503: problem("The queue is full; `Retry-After` gives the seconds to wait.", FULL),
}
