"""The payloads on our subjects: one tagged union for HEIMDEX_JOBS, one struct for each of the side streams.

Evolution: a new field needs a default, a field is never retyped, unknown fields are skipped, so that two versions
of the services can run side by side. Times are UTC; `at` is when a message was written, and never lies before
the message that it follows, whatever the clocks of the machines say.
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
# A NUL cannot be stored in Postgres' text, so a string that holds one is no name and no error of ours.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

#: Whose a job is where nobody said whose: on a gateway without keys, and in every message of before there were any.
DEFAULT_TENANT: Final = "default"

#: Why a job is due at a stage.
Reason = Literal["submitted", "handed_over", "handed_back", "retried", "restored"]


class StageRun(msgspec.Struct, frozen=True):
    """A stage that succeeded: on which attempt, from when to when, and the seconds by a monotonic clock."""

    stage: Name
    attempt: Count
    started_at: Moment
    ended_at: Moment
    seconds: Seconds


class Follows(msgspec.Struct, frozen=True):
    """The message that this one follows: its stream sequence and the subject on which its delivery is acknowledged.

    Whoever records a message acknowledges its predecessor too: a worker killed between publish and ack leaves a
    predecessor which would otherwise outlive its successors, come back, and be taken for its job's last message.
    """

    sequence: Sequence
    ack: str = ""


class JobMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """What every message on `heimdex.jobs.*.<job_id>` carries. OfJob: the same in each of them (see `job_spec`).

    step: how many messages of this job came before this one; run: 1, and one more for each retry of an ended job.
    progress: percent of the whole job. finished: the stages that succeeded in this run, in order.
    not_before: a job for later starts then; its first message lies on `heimdex.jobs.later.<job_id>` until that time.
    trace: the W3C traceparent of this message, for those that are fired by the server, which sends no headers.
    tenant: whose the job is.
    callback_url: where the job object is POSTed when the job ends.
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


class Due(JobMessage, frozen=True, kw_only=True, tag="due", omit_defaults=True):
    """The job is due at a stage: the worker's work, and for the status store the fact that the job got there.

    attempts: how many attempts of this stage were used up before this message, in this run.
    started: whether any worker has begun on this run of the job; until then it is pending.
    """

    stage: Name
    reason: Reason
    attempts: Count = 0
    started: bool = False


class Completed(JobMessage, frozen=True, kw_only=True, tag="completed", omit_defaults=True):
    """All stages succeeded. `result` has at least `stages_completed` and `total_duration_seconds`."""

    stage: Name
    result: dict[str, Any]


class Failed(JobMessage, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """The worker gave up. `error` names the stage and the cause.

    attempt: the last one's number; `started_at`, `seconds`: of that attempt, where it was begun by who tells this.
    """

    stage: Name
    attempt: Count
    error: Text
    started_at: Moment | None = None
    seconds: Seconds | None = None


class Canceled(JobMessage, frozen=True, kw_only=True, tag="canceled", omit_defaults=True):
    """A caller canceled the job while it was at `stage` (None: it had not started).

    attempt (0: none), `started_at`, `seconds`: of the attempt that this interrupted, as far as it had told of itself.
    """

    stage: Name | None = None
    attempt: Count = 0
    started_at: Moment | None = None
    seconds: Seconds | None = None


End = Completed | Failed | Canceled
AnyJobMessage = Due | Completed | Failed | Canceled


class AttemptFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt that ended in an error and will be retried after `delay_seconds`."""

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


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a running stage is.

    started_at: when this attempt began. ended: it is over and told its error (so nobody was lost).
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


AnyMessage = Due | Completed | Failed | Canceled | AttemptFailed | Progress

_T = TypeVar("_T")

_encoder: Final = msgspec.json.Encoder()
_jobs: Final = msgspec.json.Decoder(AnyJobMessage)
_attempts: Final = msgspec.json.Decoder(AttemptFailed)
_progress: Final = msgspec.json.Decoder(Progress)

#: As JSON writes it; or as the end of an escaped backslash and "u0000".
_NUL: Final = rb"\u0000"

_ENDINGS: Final = {Completed: COMPLETED, Failed: FAILED, Canceled: CANCELED}


def encode(message: AnyMessage) -> bytes:
    """As compact JSON."""
    return _encoder.encode(message)


def token(message: AnyJobMessage) -> str:
    """The third token of the subject that this message belongs on."""
    return message.stage if isinstance(message, Due) else _ENDINGS[type(message)]


def decode_job(subject: str, payload: bytes) -> AnyJobMessage:
    """The message on `heimdex.jobs.<token>.<job_id>`. Raises UnusableMessage when it is not what its subject says."""
    message: AnyJobMessage = decode(_jobs, payload)
    if isinstance(message, Due) and message.not_before and subject == f"heimdex.jobs.{LATER}.{message.job_id}":
        return message
    if subject != f"heimdex.jobs.{token(message)}.{message.job_id}":
        raise UnusableMessage(
            f"the payload is that of heimdex.jobs.{token(message)}.{message.job_id}, not of {subject[:200]}"
        )
    return message


def decode_stored(payload: bytes) -> AnyJobMessage:
    """A job's message from where it was recorded, apart from its subject. Raises UnusableMessage."""
    message: AnyJobMessage = decode(_jobs, payload)
    return message


def decode_attempt(subject: str, payload: bytes) -> AttemptFailed:
    """The message on `heimdex.attempts.<stage>.<job_id>`. Raises UnusableMessage, as above."""
    message = decode(_attempts, payload)
    check_subject(subject, "attempts", message.stage, message.job_id)
    return message


def decode_progress(subject: str, payload: bytes) -> Progress:
    """The message on `heimdex.progress.<stage>.<job_id>`. Raises UnusableMessage, as above."""
    message = decode(_progress, payload)
    check_subject(subject, "progress", message.stage, message.job_id)
    return message


def check_subject(subject: str, channel: str, token: str, job_id: str) -> None:
    """Raises UnusableMessage unless the subject is `heimdex.<channel>.<token>.<job_id>`."""
    if subject != f"heimdex.{channel}.{token}.{job_id}":
        raise UnusableMessage(f"the payload is that of heimdex.{channel}.{token}.{job_id}, not of {subject[:200]}")


def decode(decoder: msgspec.json.Decoder[_T], payload: bytes) -> _T:
    """Raises UnusableMessage for what this decoder cannot read."""
    if not payload:
        raise UnusableMessage("the payload is empty")
    try:
        message = decoder.decode(payload)
        if _NUL in payload and _holds_nul(msgspec.json.decode(payload)):
            # Also in a field that no rule of ours is about: Postgres could not look into the message any more.
            raise UnusableMessage("the payload holds a NUL character, which Postgres cannot store")
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
    """UTC."""
    return datetime.now(UTC)


def is_job_id(text: str) -> bool:
    """Whether this is a UUID as we write them (hyphens, any case of letters)."""
    if len(text) != 36:
        return False
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
