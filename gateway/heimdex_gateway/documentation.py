"""What the OpenAPI document says of each route beyond its types: bodies, examples, every error answer."""

from dataclasses import dataclass
from typing import Any, Final

from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from heimdex_gateway.problems import ErrorBody

EXAMPLE_ID: Final = "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"
_CREATED: Final = "2025-10-28T12:00:00.000000Z"

TRACEPARENT_HEADER: Final = "W3C trace context; the job's messages carry its trace id on"
LOCATION: Final = ResponseHeader(
    name="Location", description="where the job is found: /jobs/{job_id}", documentation_only=True
)

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


UNAVAILABLE: Final = problem(
    "NATS or Postgres cannot be reached, and the answer cannot be had without it. Try again.",
    "NATS cannot be reached, and the job's state cannot be told without it. Try again in a few seconds.",
)

SUBMIT_ERRORS: Final = {
    400: problem("The body is not JSON.", "The body is not valid JSON: Input data was truncated."),
    413: problem("The body is over 1 MiB.", "The body is over 1 MiB; a job is far smaller."),
    415: problem("The content type is not JSON.", "Send the job as application/json, not as text/plain."),
    422: problem(
        "JSON, but not a job; `field` names what is wrong.",
        "The field 'fail_at_stage' must be null or one of 'extracting', 'analyzing', 'indexing', not 'cooking'.",
        field="fail_at_stage",
    ),
    500: UNAVAILABLE,
    503: problem(
        "The queue is full; `Retry-After` says when to try again.",
        "1000000 jobs are waiting or running, and 1000000 are allowed: try again when some have ended.",
    ),
}
READ_ERRORS: Final = {404: problem("There is no such job.", "Job not found"), 500: UNAVAILABLE}


@dataclass
class SubmitOperation(Operation):
    """POST /jobs: the route reads its body itself, so its shape is told here."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True,
            description="The job to run.",
            content={
                "application/json": OpenAPIMediaType(
                    schema=Schema(
                        title="JobRequest",
                        type=OpenAPIType.OBJECT,
                        additional_properties=False,
                        required=["type"],
                        properties={
                            "type": Schema(type=OpenAPIType.STRING, description="a known job type", enum=list(_TYPES)),
                            "fail_at_stage": Schema(
                                one_of=[
                                    Schema(type=OpenAPIType.STRING, enum=list(_STAGES)),
                                    Schema(type=OpenAPIType.NULL),
                                ],
                                description="null, or the stage at whose start the job fails on every attempt",
                            ),
                        },
                    ),
                    examples={
                        "completes": Example(summary="runs to its end", value={"type": "mock_process"}),
                        "fails": Example(
                            summary="fails at analyzing, after its retries",
                            value={"type": "mock_process", "fail_at_stage": "analyzing"},
                        ),
                    },
                )
            },
        )


_TYPES: list[str] = []
_STAGES: list[str] = []


def describe(types: tuple[str, ...], stages: tuple[str, ...]) -> None:
    """Tell the document which job types and stages this gateway knows."""
    _TYPES[:] = types
    _STAGES[:] = stages
