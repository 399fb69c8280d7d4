"""The HTTP bodies, apart from what goes over the wire inside; reads a request's bytes, or says what is wrong."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.pipelines import Pipelines
from heimdex_gateway.problems import Problem

LARGEST_BODY_BYTES: Final = 1024 * 1024


class JobRequest(msgspec.Struct, frozen=True):
    """What a caller asks for."""

    type: str
    fail_at_stage: str | None = None


class JobAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted job."""

    job_id: Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]


_MOMENT: Final = msgspec.Meta(
    description="UTC, always six digits of microseconds",
    extra_json_schema={"format": "date-time"},
    pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
)
_NOT_STARTED: Final = "null while pending, then the stage the job is in; a failed job keeps the stage where it failed"


class JobObject(msgspec.Struct, frozen=True):
    """A job as GET shows it: exactly these eight keys."""

    id: Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]
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


_KEYS: Final = JobRequest.__struct_fields__


def job_request(body: bytes, pipelines: Pipelines) -> JobRequest:
    """Raises Problem: 400 for what is not JSON, 422 naming the field for JSON that is not a job."""
    data = _json(body)
    if not isinstance(data, dict):
        raise Problem(
            422,
            f'The body must be a JSON object such as {{"type": "{pipelines.types[0]}"}}, not {_kind(data)}.',
        )
    for key in data:
        if key not in _KEYS:
            raise Problem(422, f"There is no field {_shown(key)}; the fields are {_and(_KEYS)}.", field=key[:100])
    if "type" not in data:
        raise Problem(422, f"The field 'type' is missing; it must be one of {_and(pipelines.types)}.", field="type")
    job_type = data["type"]
    pipeline = pipelines.by_type.get(job_type) if isinstance(job_type, str) else None
    if pipeline is None:
        raise Problem(
            422,
            f"The field 'type' must be one of {_and(pipelines.types)}, not {_shown(job_type)}.",
            field="type",
        )
    stage = data.get("fail_at_stage")
    if stage is not None and stage not in pipeline.stage_names:
        raise Problem(
            422,
            f"The field 'fail_at_stage' must be null or one of {_and(pipeline.stage_names)}, not {_shown(stage)}.",
            field="fail_at_stage",
        )
    return JobRequest(pipeline.type, stage)


def _json(body: bytes) -> Any:
    if not body.strip():
        raise Problem(400, 'The body is empty; send a JSON object such as {"type": "mock_process"}.')
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise Problem(400, "The body is nested too deeply to be a job.") from None
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not valid UTF-8: {error.reason} at byte {error.start}.") from None
    except msgspec.DecodeError as error:
        raise Problem(400, f"The body is not valid JSON: {error}.") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = repr(value[:60])
        return text + "…" if len(value) > 60 else text
    return _kind(value)


def _and(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
