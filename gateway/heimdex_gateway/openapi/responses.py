"""What the OpenAPI document says of each route beyond its types: bodies, examples, every error answer."""

from typing import Final

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example, SecurityScheme

from heimdex_contracts.job_object import JobObject
from heimdex_gateway.errors import ErrorBody
from heimdex_gateway.openapi.examples import AGAIN, CANCELED, COMPLETED, EVENTS, EXAMPLE_ID, FAILED
from heimdex_gateway.schemas.events import EventList
from heimdex_gateway.schemas.job_list import JobList
from heimdex_gateway.schemas.jobs import JobsAccepted, JobsRetried

TRACEPARENT_HEADER: Final = "W3C trace context; the job's messages carry its trace id on"


def problem(description: str, example: str, **extra: str) -> ResponseSpec:
    """One error answer."""
    return ResponseSpec(
        data_container=ErrorBody,
        description=description,
        generate_examples=False,
        examples=[Example(id="error", value={"detail": example, **extra})],
    )


#: How a key is sent.
SCHEME: Final = "key"
KEY: Final = SecurityScheme(type="http", scheme="bearer", description="A key of yours; see the operator for one.")

UNAVAILABLE: Final = problem(
    "NATS or Postgres cannot be reached, and the answer cannot be had without it. Try again.",
    "NATS cannot be reached, and the job's state cannot be told without it. Try again in a few seconds.",
)

FULL: Final = "1000000 jobs are waiting or running, and 1000000 are allowed: try again when some have ended."
SUBMIT_ERRORS: Final = {
    400: problem("The body is not JSON.", "The body is not valid JSON: Input data was truncated."),
    413: problem("The body is over 1 MiB.", "The body is over 1 MiB; a job is far smaller."),
    415: problem("The content type is not JSON.", "Send the body as application/json, not as text/plain."),
    422: problem(
        "JSON, but not a job; `field` names what is wrong.",
        "The field 'fail_at_stage' must be null or one of 'extracting', 'analyzing', 'indexing', not 'cooking'.",
        field="fail_at_stage",
    ),
    500: UNAVAILABLE,
    503: problem(
        "The queue is full; `Retry-After` says when to try again.",
        FULL,
    ),
}
LIST_ANSWERS: Final = {
    200: ResponseSpec(
        JobList,
        description="A page of jobs.",
        generate_examples=False,
        examples=[Example(id="page", value={"jobs": [COMPLETED, FAILED], "next_cursor": None})],
    ),
    422: problem(
        "A parameter is wrong; `field` names it.",
        "The parameter 'limit' must be a whole number from 1 to 1000, not '0'.",
        field="limit",
    ),
    500: UNAVAILABLE,
}
NO_PARAMETERS: Final = problem(
    "There are no parameters.", "There is no parameter 'form'; there are none.", field="form"
)
EVENTS_ANSWERS: Final = {
    200: ResponseSpec(
        EventList,
        description="The history in order. As text/event-stream: the same entries as events, and `progress` ticks.",
        generate_examples=False,
        examples=[Example(id="history", value=EVENTS)],
    ),
    404: problem("There is no such job.", "Job not found"),
    422: NO_PARAMETERS,
    500: UNAVAILABLE,
}


def _changes(example: Example, conflict: str, no_room: str) -> dict[int, ResponseSpec]:
    """The answers to a change of one job."""
    return {
        200: ResponseSpec(JobObject, description="Done and recorded.", generate_examples=False, examples=[example]),
        202: ResponseSpec(
            JobObject,
            description="Done; the status store has not recorded it yet.",
            generate_examples=False,
            examples=[example],
        ),
        404: problem("There is no such job.", "Job not found"),
        409: problem("The job's state does not allow it.", conflict),
        500: UNAVAILABLE,
        503: problem(f"{no_room}; `Retry-After` says when to try again.", FULL),
    }


CANCEL_ANSWERS: Final = _changes(
    Example(id="canceled", summary="after a cancel", value=CANCELED),
    "The job has ended (completed): only one that has not can be canceled.",
    "JetStream has no room for what ends the job",
)
RETRY_ANSWERS: Final = _changes(
    Example(id="again", summary="after a retry", value=AGAIN),
    "The job has completed: only a failed or canceled one can be run again.",
    "There is no room for another run",
)
UNKNOWN_FROM: Final = problem(
    "The parameter is unknown.", "The parameter 'from' must be 'failed' or 'start', not 'middle'.", field="from"
)
WRONG_WAIT: Final = problem(
    "The parameter is wrong.", "The parameter 'wait' must be seconds from 0 to 300, not 'long'.", field="wait"
)
READ_ERRORS: Final = {422: WRONG_WAIT, 404: problem("There is no such job.", "Job not found"), 500: UNAVAILABLE}


BATCH_ANSWERS: Final = {
    202: ResponseSpec(
        JobsAccepted,
        description="All stored by JetStream: they will run.",
        generate_examples=False,
        examples=[Example(id="accepted", value={"job_ids": [EXAMPLE_ID]})],
    ),
    **SUBMIT_ERRORS,
}
RETRY_MANY_ANSWERS: Final = {
    200: ResponseSpec(
        JobsRetried,
        description="So many jobs run again.",
        generate_examples=False,
        examples=[Example(id="retried", value={"retried": 17, "more": False})],
    ),
    422: problem(
        "A parameter is wrong; `field` names it.",
        "The parameter 'status' is missing; it must be 'failed' or 'canceled'.",
        field="status",
    ),
    500: UNAVAILABLE,
    503: problem("There is no room for more runs; `Retry-After` says when to try again.", FULL),
}
