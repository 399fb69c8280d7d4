"""The bodies of POST /jobs and POST /jobs/batch.

JobBody is the only definition of these fields: it validates a body, and the OpenAPI document is generated from it. A
body that it refuses is then checked by hand, for a precise error: 400 if it is not JSON, else 422 with the field.
The parameters of a job are not parsed with the body: each job type validates its own (`heimdex_contracts.params`).
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

import msgspec

from heimdex_callbacks.validation import CallbackValidation
from heimdex_contracts import messages
from heimdex_contracts.json_values import kind
from heimdex_contracts.messages import NOTHING, Moment
from heimdex_contracts.params import ParamsRefused, validated
from heimdex_contracts.pipelines import Pipeline, Pipelines
from heimdex_gateway.jobs.submit import JobRequest
from heimdex_gateway.problem import Problem

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_BATCH_JOBS: Final = 1000
MAX_DELAY: Final = timedelta(days=366)


class JobBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /jobs: one job."""

    type: Annotated[str, msgspec.Meta(description="a known job type")]
    fail_at_stage: Annotated[
        str | None,
        msgspec.Meta(description="null, or a stage: the job then fails at the start of that stage, on every attempt"),
    ] = None
    run_at: Annotated[
        Moment | None,
        msgspec.Meta(
            description="the earliest start, a time with its time zone; cannot be combined with delay_seconds"
        ),
    ] = None
    delay_seconds: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY.total_seconds())] | None,
        msgspec.Meta(description="the earliest start, in seconds from now; cannot be combined with run_at"),
    ] = None
    callback_url: str | None = None
    # A factory, because the JSON schema of a struct shows a default, and raw JSON cannot be shown.
    params: msgspec.Raw = msgspec.field(default_factory=lambda: NOTHING)


class BatchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /jobs/batch: 1 to MAX_BATCH_JOBS jobs."""

    jobs: Annotated[list[JobBody], msgspec.Meta(min_length=1, max_length=MAX_BATCH_JOBS)]


_KEYS: Final = JobBody.__struct_fields__
_BATCH_KEYS: Final = BatchBody.__struct_fields__
_job_body: Final = msgspec.json.Decoder(JobBody)
_batch_body: Final = msgspec.json.Decoder(BatchBody)
_REFUSED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_PARAMS_STATUS: Final = {"not_json": 400, "too_large": 413, "invalid": 422}
#: An escape of a JSON string. The group is half of a surrogate pair, which msgspec takes for invalid JSON.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_HALF: Final = rb"\ud800"
#: Code points that are no characters, so that a body has hardly ever one of them: each can stand for _HALF.
_STANDINS: Final = range(0xFDD0, 0xFDF0)
_T = TypeVar("_T")


def job(body: bytes, pipelines: Pipelines, callbacks: CallbackValidation) -> JobRequest:
    """Read the body of POST /jobs. Raises Problem 400 or 422, and CallbackUrlRefused."""
    try:
        fields = msgspec.structs.asdict(_job_body.decode(body))
    except _REFUSED as error:
        _check_halves(body, lambda data: [_job_body.decode(data)], pipelines, callbacks, lambda _: "")
        _read(body, f'{{"type": "{pipelines.types[0]}"}}', lambda data: _job(data, pipelines, callbacks, ""))
        raise _refusal(error) from None
    return _checked(fields, pipelines, callbacks, "")


def jobs(body: bytes, pipelines: Pipelines, callbacks: CallbackValidation) -> list[JobRequest]:
    """Read the body of POST /jobs/batch. Raises as `job` if the batch, or any of its jobs, is invalid."""
    try:
        entries = _batch_body.decode(body).jobs
    except _REFUSED as error:
        _check_halves(body, lambda data: _batch_body.decode(data).jobs, pipelines, callbacks, "jobs[{}].".format)
        example = f'{{"jobs": [{{"type": "{pipelines.types[0]}"}}]}}'
        _read(body, example, lambda data: _jobs(data, pipelines, callbacks))
        raise _refusal(error) from None
    return [
        _checked(msgspec.structs.asdict(entry), pipelines, callbacks, f"jobs[{number}].")
        for number, entry in enumerate(entries)
    ]


def _check_halves(
    body: bytes,
    decode: Callable[[bytes], list[JobBody]],
    pipelines: Pipelines,
    callbacks: CallbackValidation,
    prefix: Callable[[int], str],
) -> None:
    """Raise for parameters with half of a surrogate pair, where nothing else is wrong with the body.

    The body is decoded with a stand-in for each half. Returns where this does not explain the refusal of the body.
    """
    standin = next((code for each in _STANDINS if (code := f"\\u{each:04x}".encode()) not in body.lower()), None)
    if standin is None or b"\\ud" not in body.lower():
        return
    try:
        entries = decode(_ESCAPE.sub(lambda escape: standin if escape[1] else escape[0], body))
    except _REFUSED:
        return
    texts = (text for entry in entries for text in (entry.type, entry.fail_at_stage, entry.callback_url) if text)
    if any(json.loads(b'"%s"' % standin) in text for text in texts):
        return
    for number, entry in enumerate(entries):
        params = msgspec.Raw(bytes(entry.params).replace(standin, _HALF)) if entry.params else NOTHING
        fields = msgspec.structs.asdict(entry) | {"params": params}
        _checked(fields, pipelines, callbacks, prefix(number))


def _refusal(error: Exception) -> Problem:
    """The refusal of a field for which the walk by hand has no words of its own. msgspec ends with its path: `$.a`."""
    text, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").lstrip(".")
    if not field:
        return Problem(422, f"The body is invalid: {text}.")
    return Problem(422, f"The field {field!r} is invalid: {text}.", field=field)


def _jobs(data: dict[str, Any], pipelines: Pipelines, callbacks: CallbackValidation) -> list[JobRequest]:
    _check_keys(data, _BATCH_KEYS, "")
    allowed = f"an array of 1 to {MAX_BATCH_JOBS} jobs"
    if "jobs" not in data:
        raise _field_problem("", "jobs", f"is missing; it must be {allowed}")
    entries = data["jobs"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_BATCH_JOBS:
        given = f"{len(entries)} of them" if isinstance(entries, list) else kind(entries)
        raise _field_problem("", "jobs", f"must be {allowed}, not {given}")
    requests = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            name = f"jobs[{number}]"
            raise Problem(422, f"The field {name!r} must be an object, not {kind(entry)}.", field=name)
        requests.append(_job(entry, pipelines, callbacks, f"jobs[{number}]."))
    return requests


def callback_urls(requests: Sequence[JobRequest]) -> list[tuple[str, str]]:
    """Return the field and the URL of each job of a batch that has a callback URL."""
    return [(f"jobs[{n}].callback_url", entry.callback_url) for n, entry in enumerate(requests) if entry.callback_url]


def _job(data: dict[str, Any], pipelines: Pipelines, callbacks: CallbackValidation, prefix: str) -> JobRequest:
    _check_keys(data, _KEYS, prefix)
    if "type" not in data:
        raise _field_problem(prefix, "type", f"is missing; it must be one of {_listed(pipelines.types)}")
    return _checked(data, pipelines, callbacks, prefix)


def _checked(data: dict[str, Any], pipelines: Pipelines, callbacks: CallbackValidation, prefix: str) -> JobRequest:
    """Apply the rules that a schema of single fields cannot express.

    data: the fields as decoded by JobBody, or as parsed from JSON after JobBody refused them.
    """
    job_type = data["type"]
    pipeline = pipelines.by_type.get(job_type) if isinstance(job_type, str) else None
    if pipeline is None:
        raise _field_problem(prefix, "type", f"must be one of {_listed(pipelines.types)}, not {_shown(job_type)}")
    stage = data.get("fail_at_stage")
    if stage is not None and stage not in pipeline.stage_names:
        allowed = _listed(pipeline.stage_names)
        raise _field_problem(prefix, "fail_at_stage", f"must be null or one of {allowed}, not {_shown(stage)}")
    url = data.get("callback_url")
    url = None if url is None else callbacks.read(url, f"{prefix}callback_url")
    not_before = _not_before(data, prefix)
    params = data.get("params", NOTHING)
    # A body that JobBody refused is refused for something else.
    params = _params(params, pipeline, prefix) if isinstance(params, msgspec.Raw) else NOTHING
    return JobRequest(pipeline.type, stage, not_before, url, params)


def _params(given: msgspec.Raw, pipeline: Pipeline, prefix: str) -> msgspec.Raw:
    try:
        return validated(given, pipeline, prefix)
    except ParamsRefused as error:
        raise Problem(_PARAMS_STATUS[error.fault], str(error), field=error.field) from None


def _not_before(data: dict[str, Any], prefix: str) -> datetime | None:
    run_at, delay = data.get("run_at"), data.get("delay_seconds")
    if run_at is not None and delay is not None:
        raise _field_problem(prefix, "run_at", "cannot be combined with 'delay_seconds': send one of them")
    now = messages.now()
    if delay is not None:
        most = int(MAX_DELAY.total_seconds())
        if isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay <= most:
            raise _field_problem(
                prefix, "delay_seconds", f"must be null or a number of seconds from 0 to {most}, not {_shown(delay)}"
            )
        return now + timedelta(seconds=delay) if delay > 0 else None
    if run_at is None:
        return None
    try:
        at: datetime = msgspec.convert(run_at, messages.Moment)
        too_late = at > now + MAX_DELAY
        past = at <= now
    except (msgspec.ValidationError, OverflowError, ValueError):
        hint = "must be null or a time with its time zone, such as 2025-10-28T12:00:00Z"
        raise _field_problem(prefix, "run_at", f"{hint}, not {_shown(run_at)}") from None
    if too_late:
        raise _field_problem(prefix, "run_at", f"must be at most {MAX_DELAY.days} days from now")
    return None if past else at


def _check_keys(data: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in data:
        if key not in known:
            name = f"{prefix}{key}"
            raise Problem(422, f"There is no field {_shown(name)}; the fields are {_listed(known)}.", field=name[:100])


def _field_problem(prefix: str, name: str, what: str) -> Problem:
    return Problem(422, f"The field {prefix + name!r} {what}.", field=prefix + name)


def _read(body: bytes, example: str, convert: Callable[[dict[str, Any]], _T]) -> _T:
    try:
        data = _json(body, example)
    except msgspec.DecodeError as error:
        data = _json_with_huge_numbers(body, str(error))
        convert(_object(data, example))  # raises with the name of the field that holds the number
        raise Problem(400, f"The body cannot be read: {error}.") from None
    return convert(_object(data, example))


def _object(data: Any, example: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Problem(422, f"The body must be a JSON object such as {example}, not {kind(data)}.")
    return data


def _json(body: bytes, example: str) -> Any:
    if not body.strip():
        raise Problem(400, f"The body is empty; send a JSON object such as {example}.")
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not valid UTF-8: {error.reason} at byte {error.start}.") from None


def _json_with_huge_numbers(body: bytes, refusal: str) -> Any:
    """Parse valid JSON that msgspec refuses because a number is beyond the range of a float; it becomes infinity here.

    Raises Problem 400: for invalid JSON with `refusal`, msgspec's description; for half a surrogate pair with our own.
    """
    try:
        # float() accepts every integer of JSON; int() refuses one of more than 4,300 digits.
        data = json.loads(body.decode(), parse_int=float, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()
    except RecursionError:
        raise _too_deep() from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise Problem(
            400, f"The body is not valid JSON: {half} is half of a surrogate pair, not a character."
        ) from None
    except ValueError:
        raise Problem(400, f"The body is not valid JSON: {refusal}.") from None
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _too_deep() -> Problem:
    return Problem(400, "The body is nested too deeply.")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = repr(value[:60])
        return text + "…" if len(value) > 60 else text
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return f"{value:.15g}"
    return kind(value)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
