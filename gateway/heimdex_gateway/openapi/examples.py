"""Example jobs and events for the OpenAPI document."""

from typing import Any, Final

from litestar.openapi.spec import Example

EXAMPLE_ID: Final = "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"


_CREATED: Final = "2025-10-28T12:00:00.000000Z"


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
    Example(id="processing", summary="a running job", value=PROCESSING),
    Example(id="completed", summary="a completed job", value=COMPLETED),
    Example(id="failed", summary="a failed job", value=FAILED),
]


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


STREAM_EXAMPLE: Final = """\
id: 1.0
event: handed_over
data: {"id": "1.0", "event": "handed_over", "run": 1, "stage": "analyzing", ...}

event: progress
data: {"stage": "analyzing", "attempt": 1, "progress": 45, "at": "2025-10-28T12:00:02.734113Z"}

"""
