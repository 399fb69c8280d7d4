"""Example jobs and events for the OpenAPI document, with the names of a job type that the gateway has."""

from typing import Any, Final

import msgspec

from heimdex_contracts.pipelines import Pipelines
from heimdex_gateway.schemas.job_types import job_types

EXAMPLE_ID: Final = "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"
_CREATED: Final = "2025-10-28T12:00:00.000000Z"


def responses(pipelines: Pipelines) -> dict[str, Any]:
    """Return the example responses by their names in the document. They are of jobs of the first job type."""
    stages = pipelines.by_type[pipelines.types[0]].stage_names
    stage = stages[len(stages) // 2]
    processing = {
        "id": EXAMPLE_ID,
        "status": "processing",
        "stage": stage,
        "progress": 45,
        "result": None,
        "error": None,
        "created_at": _CREATED,
        "updated_at": "2025-10-28T12:00:02.734113Z",
    }
    completed = {
        **processing,
        "status": "completed",
        "stage": stages[-1],
        "progress": 100,
        "result": {"stages_completed": list(stages), "total_duration_seconds": 6.021, "output": None},
        "updated_at": "2025-10-28T12:00:06.021377Z",
    }
    failed = {
        **processing,
        "status": "failed",
        "progress": 33,
        "error": f"The stage {stage} failed on attempt 4 of 4: RuntimeError: out of disk space",
        "updated_at": "2025-10-28T12:00:09.104210Z",
    }
    return {
        "processing": processing,
        "completed": completed,
        "failed": failed,
        "canceled": {**processing, "status": "canceled"},
        "again": {**processing, "status": "pending", "stage": None, "progress": 33},
        "history": {"events": _events(stages[0], stage)},
        "page": {"jobs": [completed, failed], "next_cursor": None},
        "types": msgspec.to_builtins(job_types(pipelines)),
    }


def _events(first: str, second: str) -> list[dict[str, Any]]:
    return [
        _event("0.0", "submitted", first, _CREATED),
        _event(
            "1.0",
            "handed_over",
            second,
            "2025-10-28T12:00:02.010230Z",
            ended=_attempt(first, 1, "2025-10-28T12:00:00.004519Z", 2.005),
        ),
        _event(
            "1.1",
            "attempt_lost",
            second,
            "2025-10-28T12:00:32.054120Z",
            ended=_attempt(second, 1, "2025-10-28T12:00:02.011871Z", None),
            error="worker lost: the attempt ended without a result",
            retry_in_seconds=0.0,
        ),
        _event(
            "1.2",
            "attempt_failed",
            second,
            "2025-10-28T12:00:33.107713Z",
            ended=_attempt(second, 2, "2025-10-28T12:00:32.054120Z", 1.053),
            error="KeyError: 'frames'",
            retry_in_seconds=2.0,
            traceback='Traceback (most recent call last):\n  File "/srv/media/stages.py", line 41, in run\n'
            "    count = probe[\"frames\"]\n            ~~~~~^^^^^^^^^^\nKeyError: 'frames'",
        ),
    ]


def _event(event_id: str, event: str, stage: str, at: str, **fields: Any) -> dict[str, Any]:
    empty = {"ended": None, "error": None, "retry_in_seconds": None, "traceback": None}
    return {"id": event_id, "event": event, "run": 1, "stage": stage, "at": at, **empty, **fields}


def _attempt(stage: str, attempt: int, started_at: str, seconds: float | None) -> dict[str, Any]:
    return {"stage": stage, "attempt": attempt, "started_at": started_at, "duration_seconds": seconds}


def stream(pipelines: Pipelines) -> str:
    """Return an example of live events, of a job of the first job type."""
    stages = pipelines.by_type[pipelines.types[0]].stage_names
    return _STREAM % {"stage": stages[len(stages) // 2]}


_STREAM: Final = """\
id: 1.0
event: handed_over
data: {"id": "1.0", "event": "handed_over", "run": 1, "stage": "%(stage)s", ...}

event: progress
data: {"stage": "%(stage)s", "attempt": 1, "progress": 45, "at": "2025-10-28T12:00:02.734113Z"}

"""


def wrong_stage(pipelines: Pipelines) -> str:
    """Return an example of the `detail` of a submission that is refused."""
    stages = ", ".join(map(repr, pipelines.by_type[pipelines.types[0]].stage_names))
    return f"The field 'fail_at_stage' must be null or one of {stages}, not 'cooking'."
