"""The HTTP bodies that are answered, apart from what goes over the wire inside."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.lifecycle import Snapshot

JobId = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]


class JobAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted job."""

    job_id: JobId


class JobsAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted batch: the ids in the order of the jobs."""

    job_ids: list[JobId]


class JobsRetried(msgspec.Struct, frozen=True):
    """How many jobs run again, and whether there are more of them: then ask again."""

    retried: int
    more: bool


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


class Health(msgspec.Struct, frozen=True):
    """The process is alive; says nothing of NATS or Postgres."""

    ok: bool
    service: str
    version: str
    env: str
    started_at: str


class DependencyState(msgspec.Struct, frozen=True):
    """Whether one dependency can be used now, and if not, why."""

    ok: bool
    detail: str


class Readiness(msgspec.Struct, frozen=True):
    """Whether the gateway can do its work now. `detail`: a sentence for people."""

    ok: bool
    detail: str
    nats: DependencyState
    postgres: DependencyState


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
