"""The job object: the eight keys of a job that the API returns and that a callback carries."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.lifecycle import Snapshot

JobId = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]


_MOMENT: Final = msgspec.Meta(
    description="UTC, always with six digits of microseconds",
    extra_json_schema={"format": "date-time"},
    pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
)


_NOT_STARTED: Final = "null while pending, then the job's current stage; a failed job keeps the stage where it failed"


class JobObject(msgspec.Struct, frozen=True):
    """A job as `GET /jobs/{job_id}` returns it: exactly these eight keys."""

    id: JobId
    status: Annotated[
        str,
        msgspec.Meta(extra_json_schema={"enum": ["pending", "processing", "completed", "failed", "canceled"]}),
    ]
    stage: Annotated[str | None, msgspec.Meta(description=_NOT_STARTED)]
    progress: Annotated[int, msgspec.Meta(ge=0, le=100, description="percent; never decreases; 100 when completed")]
    result: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(description="null until completed, then at least stages_completed and total_duration_seconds"),
    ]
    error: Annotated[str | None, msgspec.Meta(description="null unless failed; names the stage and the cause")]
    created_at: Annotated[str, _MOMENT]
    updated_at: Annotated[str, _MOMENT]


def moment(at: datetime) -> str:
    """Format a time as `2025-10-28T12:00:00.000000Z`. msgspec itself would omit microseconds that are zero."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def job_object(job: Snapshot) -> JobObject:
    """Return the job object of a job."""
    return JobObject(
        id=job.job_id,
        status=job.status,
        stage=job.stage,
        progress=job.progress,
        result=job.result,
        error=job.error,
        created_at=moment(job.created_at),
        updated_at=moment(job.updated_at),
    )
