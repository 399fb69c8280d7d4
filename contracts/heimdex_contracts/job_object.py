"""The job object: the eight keys of a job that the API returns and that a callback carries."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import NOTHING

JobId = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]


_MOMENT: Final = msgspec.Meta(
    description="UTC, always with six digits of microseconds",
    extra_json_schema={"format": "date-time"},
    pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
)


_NOT_STARTED: Final = "null while pending, then the job's current stage; a failed job keeps the stage where it failed"


class Result(msgspec.Struct, frozen=True):
    """The result of a completed job. A job of release 0.1.0 has no `output`."""

    stages_completed: list[str]
    total_duration_seconds: float
    output: Annotated[Any, msgspec.Meta(description="what the last stage returned; null if it returned nothing")] = None


class JobObject(msgspec.Struct, frozen=True):
    """A job as `GET /jobs/{job_id}` returns it: eight keys, and each one that the parameter `include` asks for."""

    id: JobId
    status: Annotated[
        str,
        msgspec.Meta(extra_json_schema={"enum": ["pending", "processing", "completed", "failed", "canceled"]}),
    ]
    stage: Annotated[str | None, msgspec.Meta(description=_NOT_STARTED)]
    progress: Annotated[int, msgspec.Meta(ge=0, le=100, description="percent; never decreases; 100 when completed")]
    result: Annotated[Result | None, msgspec.Meta(description="null until completed")]
    error: Annotated[str | None, msgspec.Meta(description="null unless failed; names the stage and the cause")]
    created_at: Annotated[str, _MOMENT]
    updated_at: Annotated[str, _MOMENT]
    params: Annotated[
        dict[str, Any] | msgspec.UnsetType, msgspec.Meta(description="only with `include=params`: the job's parameters")
    ] = msgspec.UNSET
    outputs: Annotated[
        dict[str, Any] | msgspec.UnsetType,
        msgspec.Meta(
            description="only with `include=outputs`: what each stage returned that has succeeded in this run, by its "
            "name"
        ),
    ] = msgspec.UNSET


#: What the parameter `include` may ask for.
INCLUDED: Final = ("params", "outputs")


def moment(at: datetime) -> str:
    """Format a time as `2025-10-28T12:00:00.000000Z`. msgspec itself would omit microseconds that are zero."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def job_object(job: Snapshot, include: Collection[str] = ()) -> JobObject:
    """Return the job object of a job. include: the keys of INCLUDED to add.

    The values that are JSON already are not parsed: they are encoded as they are.
    """
    added: dict[str, Any] = {}
    if "params" in include:
        added["params"] = job.params or {}
    if "outputs" in include:
        added["outputs"] = outputs_of(job)
    result: Any = job.result
    return JobObject(
        id=job.job_id,
        status=job.status,
        stage=job.stage,
        progress=job.progress,
        result=result,
        error=job.error,
        created_at=moment(job.created_at),
        updated_at=moment(job.updated_at),
        **added,
    )


class _LastOutput(msgspec.Struct):
    output: msgspec.Raw = NOTHING


def outputs_of(job: Snapshot) -> dict[str, msgspec.Raw | None]:
    """Return what each stage returned that has succeeded in this run, as JSON, by the stage's name. None: nothing."""
    outputs = {run.stage: run.output or None for run in job.finished or ()}
    if job.result is not None and job.stage is not None:
        outputs[job.stage] = msgspec.json.decode(job.result, type=_LastOutput).output or None
    return outputs
