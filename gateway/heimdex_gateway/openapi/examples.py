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


def _event(event_id: str, event: str, at: str, **fields: Any) -> dict[str, Any]:
    empty = {"ended": None, "error": None, "retry_in_seconds": None, "traceback": None}
    return {"id": event_id, "event": event, "run": 1, "stage": "analyzing", "at": at, **empty, **fields}


def _attempt(stage: str, attempt: int, started_at: str, seconds: float | None) -> dict[str, Any]:
    return {"stage": stage, "attempt": attempt, "started_at": started_at, "duration_seconds": seconds}


EVENTS: Final = {
    "events": [
        _event("0.0", "submitted", _CREATED, stage="extracting"),
        _event(
            "1.0",
            "handed_over",
            "2025-10-28T12:00:02.010230Z",
            ended=_attempt("extracting", 1, "2025-10-28T12:00:00.004519Z", 2.005),
        ),
        _event(
            "1.1",
            "attempt_lost",
            "2025-10-28T12:00:32.054120Z",
            ended=_attempt("analyzing", 1, "2025-10-28T12:00:02.011871Z", None),
            error="worker lost: the attempt ended without a result",
            retry_in_seconds=0.0,
        ),
        _event(
            "1.2",
            "attempt_failed",
            "2025-10-28T12:00:33.107713Z",
            ended=_attempt("analyzing", 2, "2025-10-28T12:00:32.054120Z", 1.053),
            error="KeyError: 'frames'",
            retry_in_seconds=2.0,
            traceback='Traceback (most recent call last):\n  File "/srv/media/stages.py", line 41, in analyze\n'
            "    count = probe[\"frames\"]\n            ~~~~~^^^^^^^^^^\nKeyError: 'frames'",
        ),
    ]
}


STREAM_EXAMPLE: Final = """\
id: 1.0
event: handed_over
data: {"id": "1.0", "event": "handed_over", "run": 1, "stage": "analyzing", ...}

event: progress
data: {"stage": "analyzing", "attempt": 1, "progress": 45, "at": "2025-10-28T12:00:02.734113Z"}

"""
