"""A job as the API answers it and as a callback carries it: eight keys, for people and programs."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.lifecycle import Snapshot

JobId = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]


_MOMENT: Final = msgspec.Meta(
    description="UTC, always six digits of microseconds",
    extra_json_schema={"format": "date-time"},
    pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
)


_NOT_STARTED: Final = "null while pending, then the stage the job is in; a failed job keeps the stage where it failed"


class JobObject(msgspec.Struct, frozen=True):
    """A job as GET shows it: exactly these eight keys."""

    id: JobId
    status: Annotated[
        str,
        msgspec.Meta(extra_json_schema={"enum": ["pending", "processing", "completed", "failed", "canceled"]}),
    ]
    stage: Annotated[str | None, msgspec.Meta(description=_NOT_STARTED)]
    progress: Annotated[int, msgspec.Meta(ge=0, le=100, description="percent; never backwards; 100 when completed")]
    result: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(description="null until completed; then at least stages_completed and total_duration_seconds"),
    ]
    error: Annotated[str | None, msgspec.Meta(description="null unless failed; names the stage and the cause")]
    created_at: Annotated[str, _MOMENT]
    updated_at: Annotated[str, _MOMENT]


def moment(at: datetime) -> str:
    """`2025-10-28T12:00:00.000000Z`. msgspec would drop microseconds that are zero."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def job_object(job: Snapshot) -> JobObject:
    """The eight keys."""
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
