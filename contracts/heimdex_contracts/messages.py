"""The message payloads: one tagged union for HEIMDEX_JOBS, one struct each for HEIMDEX_ATTEMPTS and HEIMDEX_PROGRESS.

Evolution: a new field needs a default, a field never changes its type, and decoders skip unknown fields, so that two
versions of the services can run side by side. Times are UTC. `at` is the time at which a message was written; it is
never earlier than that of the predecessor, even where the clocks of the machines differ.
"""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from heimdex_contracts.errors import UnusableMessage
from heimdex_contracts.job_spec import OfJob
from heimdex_contracts.subjects import CANCELED, COMPLETED, FAILED, LATER

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
JobId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
# Postgres cannot store a NUL in a text column, so names and error texts must not contain one.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
#: As Name, without the pattern: it costs a third of the decoding of a message, and `decode` refuses a NUL anywhere.
RouteName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

#: No JSON: a job without params, a stage without an output. A field with this default is left out of the JSON only if
#: its value is this very object, so nothing else may stand for "none".
NOTHING: Final = msgspec.Raw()

#: The tenant of jobs without a tenant: those of a gateway without API keys, and messages older than tenants.
DEFAULT_TENANT: Final = "default"

#: The reason why a job is due at a stage.
Reason = Literal["submitted", "handed_over", "handed_back", "retried", "restored"]


class StageRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stage that succeeded: its attempt, its start and end, and its duration in seconds by a monotonic clock.

    output: what its function returned, as JSON; NOTHING for None. That of a completed job's last stage is in `result`.
    """

    stage: Name
    attempt: Count
    started_at: Moment
    ended_at: Moment
    seconds: Seconds
    output: msgspec.Raw = NOTHING


class Follows(msgspec.Struct, frozen=True):
    """The predecessor of a message: its stream sequence and the subject on which its delivery is acknowledged.

    The status store acknowledges the predecessor of each message that it records. A worker killed between publish and
    ack leaves a leftover message, which would otherwise outlive its successors, be redelivered and pass for its job's
    last message.
    """

    sequence: Sequence
    ack: str = ""


class JobMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """The fields of every message on `heimdex.jobs.*.<job_id>`. OfJob fields are the same in all of them (`job_spec`).

    tenant: the owner of the job.
    step: the number of earlier messages of this job.
    run: 1 for the first run; each retry of a job in a terminal state adds one.
    progress: percent of the whole job.
    not_before: the start time of a scheduled job; its first message stays on `heimdex.jobs.later.<job_id>` until then.
    finished: the stages that succeeded in this run, in order.
    trace: the W3C traceparent of this message. A message that a schedule of the server publishes has no headers.
    callback_url: the URL to which the job object is POSTed when the job reaches a terminal state.
    route: the names of the job's stages, in order, as they were declared at its submission. A worker hands over along
    this route and not along its own pipeline, which may be older or newer. Empty in messages of releases without it:
    the first hand-over then writes the route of its worker's pipeline.
    params: the job's parameters as JSON, with their defaults, as the gateway validated them; NOTHING if its type has
    none. No service parses them on the way.
    """

    job_id: OfJob[JobId]
    type: OfJob[Name]
    tenant: OfJob[Name] = DEFAULT_TENANT
    step: Count
    run: Count = 1
    created_at: OfJob[Moment]
    at: Moment
    progress: Percent = 0
    fail_at_stage: OfJob[Name | None] = None
    not_before: Moment | None = None
    finished: tuple[StageRun, ...] = ()
    follows: Follows | None = None
    trace: str | None = None
    callback_url: OfJob[Text | None] = None
    route: OfJob[tuple[RouteName, ...]] = ()
    params: OfJob[msgspec.Raw] = NOTHING


class Due(JobMessage, frozen=True, kw_only=True, tag="due", omit_defaults=True):
    """The job is due at a stage: the worker's work item, and the status store's record that the job reached the stage.

    attempts: the number of attempts of this stage used up before this message, in this run.
    started: whether a worker has started this run of the job; until then the job is pending.
    """

    stage: Name
    reason: Reason
    attempts: Count = 0
    started: bool = False


class Completed(JobMessage, frozen=True, kw_only=True, tag="completed", omit_defaults=True):
    """All stages of the run succeeded.

    result: a JSON object with at least `stages_completed`, `total_duration_seconds` and `output`, that of the last
    stage. Messages of release 0.1.0 have no `output`.
    """

    stage: Name
    result: msgspec.Raw


class Failed(JobMessage, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """A stage failed permanently or ran out of attempts. `error` names the stage and the cause.

    attempt: the number of the last attempt. started_at, seconds: start and duration of that attempt; None where the
    worker that publishes this message did not run it. traceback: the end of the error's traceback; None where there is
    none.
    """

    stage: Name
    attempt: Count
    error: Text
    started_at: Moment | None = None
    seconds: Seconds | None = None
    traceback: Text | None = None


class Canceled(JobMessage, frozen=True, kw_only=True, tag="canceled", omit_defaults=True):
    """A caller canceled the job while it was at `stage` (None: the job had not started).

    attempt, started_at, seconds: the interrupted attempt, as far as its progress messages showed it; attempt 0: none.
    """

    stage: Name | None = None
    attempt: Count = 0
    started_at: Moment | None = None
    seconds: Seconds | None = None


End = Completed | Failed | Canceled
AnyJobMessage = Due | Completed | Failed | Canceled


class AttemptFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt ended in an error, or without any result; the stage is retried after `delay_seconds`.

    lost: the attempt began and reported no result, because its worker was lost. Its end is not known: `at` is the time
    at which a later delivery noticed it. A release without this field records it as an attempt that failed.
    traceback: the end of the error's traceback; None where there is none.
    """

    job_id: OfJob[JobId]
    type: OfJob[Name]
    tenant: OfJob[Name] = DEFAULT_TENANT
    step: Count
    run: Count = 1
    stage: Name
    attempt: Count
    error: Text
    delay_seconds: Seconds
    started_at: Moment
    at: Moment
    created_at: OfJob[Moment]
    progress: Percent = 0
    lost: bool = False
    traceback: Text | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The progress of a running stage, in percent of the whole job.

    started_at: the start of this attempt. ended: the attempt is over and reported its error, so no worker was lost.
    """

    job_id: OfJob[JobId]
    type: OfJob[Name]
    tenant: OfJob[Name] = DEFAULT_TENANT
    step: Count
    run: Count = 1
    stage: Name
    attempt: Count
    progress: Percent
    at: Moment
    created_at: OfJob[Moment]
    started_at: Moment | None = None
    ended: bool = False


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many attempts of one hand-over have begun: the claim of a redelivery that will run.

    step: the hand-over. attempt: the number of the attempt that claims, from 1, with those before a hand-back.
    token: identifies the worker that wrote the claim. started_at: the start of this attempt. ended: the attempt has
    reported its error. vanished: it ran in a process of its own, which was lost.
    """

    job_id: JobId
    step: Count
    stage: Name
    attempt: Count
    token: str
    started_at: Moment
    ended: bool = False
    vanished: bool = False


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker does not know the job's type or stage. It requested a redelivery after `delay_seconds`."""

    job_id: JobId
    type: Name
    tenant: Name = DEFAULT_TENANT
    step: Count
    stage: Name
    at: Moment
    delay_seconds: Seconds


AnyMessage = Due | Completed | Failed | Canceled | AttemptFailed | Progress

_T = TypeVar("_T")

_encoder: Final = msgspec.json.Encoder()
_jobs: Final = msgspec.json.Decoder(AnyJobMessage)
_attempts: Final = msgspec.json.Decoder(AttemptFailed)
_progress: Final = msgspec.json.Decoder(Progress)
_claims: Final = msgspec.json.Decoder(Claim)
_refusals: Final = msgspec.json.Decoder(Refusal)

#: A NUL as JSON escapes it. The same bytes may also be the end of an escaped backslash followed by "u0000".
_NUL: Final = rb"\u0000"

_ENDINGS: Final = {Completed: COMPLETED, Failed: FAILED, Canceled: CANCELED}


def encode(message: AnyMessage | Claim | Refusal) -> bytes:
    """Encode a message as compact JSON."""
    return _encoder.encode(message)


def token(message: AnyJobMessage) -> str:
    """Return the third token of this message's subject."""
    return message.stage if isinstance(message, Due) else _ENDINGS[type(message)]


def decode_job(subject: str, payload: bytes) -> AnyJobMessage:
    """Decode a message on `heimdex.jobs.<token>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message: AnyJobMessage = decode(_jobs, payload)
    if isinstance(message, Completed) and bytes(memoryview(message.result)[:1]) != b"{":
        raise UnusableMessage("the result of a completed job must be a JSON object")
    if isinstance(message, Due) and message.not_before and subject == f"heimdex.jobs.{LATER}.{message.job_id}":
        return message
    if subject != f"heimdex.jobs.{token(message)}.{message.job_id}":
        raise UnusableMessage(
            f"the payload is that of heimdex.jobs.{token(message)}.{message.job_id}, not of {subject[:200]}"
        )
    return message


def decode_stored(payload: bytes) -> AnyJobMessage:
    """Decode a job's message that was stored without its subject. Raises UnusableMessage for an invalid payload."""
    message: AnyJobMessage = decode(_jobs, payload)
    return message


def decode_attempt(subject: str, payload: bytes) -> AttemptFailed:
    """Decode a message on `heimdex.attempts.<stage>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message = decode(_attempts, payload)
    check_subject(subject, "attempts", message.stage, message.job_id)
    return message


def decode_progress(subject: str, payload: bytes) -> Progress:
    """Decode a message on `heimdex.progress.<stage>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message = decode(_progress, payload)
    check_subject(subject, "progress", message.stage, message.job_id)
    return message


def decode_claim(subject: str, payload: bytes) -> Claim:
    """Decode a message on `heimdex.checkpoints.<stage>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message = decode(_claims, payload)
    check_subject(subject, "checkpoints", message.stage, message.job_id)
    return message


def decode_refusal(subject: str, payload: bytes) -> Refusal:
    """Decode a message on `heimdex.refusals.<stage>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message = decode(_refusals, payload)
    check_subject(subject, "refusals", message.stage, message.job_id)
    return message


def check_subject(subject: str, channel: str, token: str, job_id: str) -> None:
    """Raise UnusableMessage unless the subject is `heimdex.<channel>.<token>.<job_id>`."""
    if subject != f"heimdex.{channel}.{token}.{job_id}":
        raise UnusableMessage(f"the payload is that of heimdex.{channel}.{token}.{job_id}, not of {subject[:200]}")


def decode(decoder: msgspec.json.Decoder[_T], payload: bytes) -> _T:
    """Decode a payload.

    Raises UnusableMessage when the payload is empty, does not match the decoder's type, or contains a NUL character.
    """
    if not payload:
        raise UnusableMessage("the payload is empty")
    try:
        message = decoder.decode(payload)
        if _NUL in payload and _holds_nul(msgspec.json.decode(payload)):
            # Unknown fields count too: Postgres could no longer query into the stored message.
            raise UnusableMessage("the payload contains a NUL character, which Postgres cannot store")
        return message
    except msgspec.MsgspecError as error:
        raise UnusableMessage(f"the payload cannot be read: {error}") from error
    except RecursionError as error:
        raise UnusableMessage("the payload is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise UnusableMessage("the payload is not UTF-8") from error


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(map(_holds_nul, value)) or any(map(_holds_nul, value.values()))
    return isinstance(value, list) and any(map(_holds_nul, value))


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def is_job_id(text: str) -> bool:
    """Return whether this is a UUID with hyphens, in upper or lower case."""
    if len(text) != 36:
        return False
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
