"""What the OpenAPI document says of each route beyond its types: bodies, examples, every error answer."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Example, SecurityScheme

from heimdex_contracts.job_object import JobObject
from heimdex_gateway.errors import ErrorBody
from heimdex_gateway.jobs.history import EventList
from heimdex_gateway.openapi import callbacks, postprocess, request_bodies
from heimdex_gateway.schemas.job_list import JobList
from heimdex_gateway.schemas.jobs import Health, JobAccepted, JobsAccepted, JobsRetried, Readiness

EXAMPLE_ID: Final = "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"
_CREATED: Final = "2025-10-28T12:00:00.000000Z"

TRACEPARENT_HEADER: Final = "W3C trace context; the job's messages carry its trace id on"

PROCESSING: Final[dict[str, Any]] = {
    "id": EXAMPLE_ID,
    "status": "processing",
    "stage": "analyzing",
    "progress": 45,
    "result": None,
    "error": None,
    "created_at": _CREATED,
    "updated_at": "2025-10-28T12:00:02.734113Z",
}
COMPLETED: Final[dict[str, Any]] = {
    **PROCESSING,
    "status": "completed",
    "stage": "indexing",
    "progress": 100,
    "result": {"stages_completed": ["extracting", "analyzing", "indexing"], "total_duration_seconds": 6.021},
    "updated_at": "2025-10-28T12:00:06.021377Z",
}
CANCELED: Final[dict[str, Any]] = {**PROCESSING, "status": "canceled"}
AGAIN: Final[dict[str, Any]] = {**PROCESSING, "status": "pending", "stage": None, "progress": 33}
FAILED: Final[dict[str, Any]] = {
    **PROCESSING,
    "status": "failed",
    "progress": 33,
    "error": "The stage analyzing failed on attempt 4 of 4: RuntimeError: out of disk space",
    "updated_at": "2025-10-28T12:00:09.104210Z",
}

JOB_EXAMPLES: Final = [
    Example(id="processing", summary="a job on its way", value=PROCESSING),
    Example(id="completed", summary="a completed job", value=COMPLETED),
    Example(id="failed", summary="a failed job", value=FAILED),
]


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
EVENTS: Final = {
    "events": [
        {
            "id": "0.0",
            "event": "submitted",
            "run": 1,
            "stage": "extracting",
            "at": _CREATED,
            "ended": None,
            "error": None,
            "retry_in_seconds": None,
        },
        {
            "id": "1.0",
            "event": "handed_over",
            "run": 1,
            "stage": "analyzing",
            "at": "2025-10-28T12:00:02.010230Z",
            "ended": {
                "stage": "extracting",
                "attempt": 1,
                "started_at": "2025-10-28T12:00:00.004519Z",
                "duration_seconds": 2.005,
            },
            "error": None,
            "retry_in_seconds": None,
        },
    ]
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
STREAM_EXAMPLE: Final = """\
id: 1.0
event: handed_over
data: {"id": "1.0", "event": "handed_over", "run": 1, "stage": "analyzing", ...}

event: progress
data: {"stage": "analyzing", "attempt": 1, "progress": 45, "at": "2025-10-28T12:00:02.734113Z"}

"""
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


_WITH_NULLS: Final[dict[str, Any]] = {
    "processing": PROCESSING,
    "completed": COMPLETED,
    "failed": FAILED,
    "canceled": CANCELED,
    "again": AGAIN,
    "history": EVENTS,
    "page": {"jobs": [COMPLETED, FAILED], "next_cursor": None},
}


def finish(document: dict[str, Any]) -> dict[str, Any]:
    """Put right, in place, what the framework leaves out: nulls in examples, formats and enums of our structs, headers.

    Safe to repeat. Returns the document.
    """
    _, components = msgspec.json.schema_components(
        [
            JobAccepted,
            JobsAccepted,
            JobsRetried,
            JobObject,
            JobList,
            EventList,
            ErrorBody,
            Health,
            Readiness,
        ],
        ref_template="#/components/schemas/{name}",
    )
    document["components"]["schemas"] = components
    # By name, so that a generated client calls it so too.
    components["JobRequest"] = request_bodies.job_schema().to_schema()
    components["BatchRequest"] = request_bodies.batch_schema().to_schema()
    components["BatchRequest"]["properties"]["jobs"]["items"] = {"$ref": "#/components/schemas/JobRequest"}
    for path, name in (("/jobs", "JobRequest"), ("/jobs/batch", "BatchRequest")):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body["schema"] = {"$ref": f"#/components/schemas/{name}"}
    for name, example in (pair for examples in _examples(document["paths"]) for pair in examples.items()):
        example.pop("id", None)
        example["value"] = _WITH_NULLS.get(name, example["value"])
    events = document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    events["text/event-stream"] = {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}
    document["paths"]["/jobs"]["post"]["responses"]["202"]["headers"] = {
        "Location": {"description": "where the job is found", "schema": {"type": "string"}}
    }
    # The framework thinks that the id is validated; a malformed one is a job that never was: 404.
    for path in document["paths"].values():
        for operation in path.values():
            if operation["operationId"] not in {"submitJob", "submitJobs"}:
                operation["responses"].pop("400", None)
    postprocess.add(document)
    if request_bodies.takes_callbacks():
        callbacks.add(document)
    return document


def _examples(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "examples" and isinstance(value, dict):
                yield value
            else:
                yield from _examples(value)


class FinishedJson(JsonRenderPlugin):
    """/schema/openapi.json."""

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        """The finished document."""
        return super().render(request, finish(openapi_schema))


class FinishedPage(SwaggerRenderPlugin):
    """/schema: the page where a person can try it."""

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        """The page around the finished document."""
        return super().render(request, finish(openapi_schema))
