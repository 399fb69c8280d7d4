"""All subjects and the names of all streams and durable consumers. No other module spells one out.

These names are fixed, because operators' scripts use them.
"""

from typing import Final

JOBS: Final = "HEIMDEX_JOBS"
ATTEMPTS: Final = "HEIMDEX_ATTEMPTS"
PROGRESS: Final = "HEIMDEX_PROGRESS"
CALLBACKS: Final = "HEIMDEX_CALLBACKS"
CHECKPOINTS: Final = "HEIMDEX_CHECKPOINTS"
UNUSABLE: Final = "HEIMDEX_UNUSABLE"
IDEMPOTENCY: Final = "KV_HEIMDEX_IDEMPOTENCY"

STATUS_STORE: Final = "status-store"
#: The durable consumer that all gateways share. It receives the callbacks that are to be sent.
GATEWAY: Final = "gateway"
#: First token of the subjects on which the streams republish every message that they have stored.
STORED: Final = "heimdex-stored"

COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELED: Final = "canceled"
LATER: Final = "later"
#: Reserved; nobody publishes such a message.
WAITING: Final = "waiting"
#: Reserved for messages that delete a job; nobody publishes one yet.
DELETED: Final = "deleted"
#: Third tokens of `heimdex.jobs.<token>.<job_id>` that name a terminal state.
ENDS: Final = frozenset({COMPLETED, FAILED, CANCELED})
#: Third tokens of `heimdex.jobs.<token>.<job_id>` that are not stages. A stage must not have one of these names.
RESERVED_TOKENS: Final = ENDS | {LATER, WAITING, DELETED}

#: Third tokens of `heimdex.callbacks.<token>.<job_id>`. A failed attempt is also the work item of the next attempt.
CALLBACK_DUE: Final = "due"
CALLBACK_FAILED: Final = "failed"
CALLBACK_DELIVERED: Final = "delivered"
CALLBACK_GIVEN_UP: Final = "given-up"

NANOSECOND: Final = 1_000_000_000


def job_subject(token: str, job_id: str) -> str:
    """Return `heimdex.jobs.<token>.<job_id>`; the token is a stage, a terminal state or `later`."""
    return f"heimdex.jobs.{token}.{job_id}"


def job_filter(job_id: str) -> str:
    """Return the filter for all messages of one job on HEIMDEX_JOBS, as the successor fence uses it."""
    return f"heimdex.jobs.*.{job_id}"


def attempt_subject(stage: str, job_id: str) -> str:
    """Return `heimdex.attempts.<stage>.<job_id>`, the subject of a failed attempt that will be retried."""
    return f"heimdex.attempts.{stage}.{job_id}"


def progress_subject(stage: str, job_id: str) -> str:
    """Return `heimdex.progress.<stage>.<job_id>`, the subject of a running stage's progress."""
    return f"heimdex.progress.{stage}.{job_id}"


def checkpoint_subject(stage: str, job_id: str) -> str:
    """Return `heimdex.checkpoints.<stage>.<job_id>`, the subject of the claim of a redelivery."""
    return f"heimdex.checkpoints.{stage}.{job_id}"


def refusal_subject(stage: str, job_id: str) -> str:
    """Return `heimdex.refusals.<stage>.<job_id>`, on which a worker reports a job of an unknown type or stage.

    Core NATS: no stream stores it.
    """
    return f"heimdex.refusals.{stage}.{job_id}"


def callback_subject(token: str, job_id: str) -> str:
    """Return `heimdex.callbacks.<token>.<job_id>`; the token is one of CALLBACK_DUE and its siblings."""
    return f"heimdex.callbacks.{token}.{job_id}"


def unusable_subject(subject: str) -> str:
    """Return the dead-letter subject of `heimdex.<rest>`, which is `heimdex.unusable.<rest>`."""
    return "heimdex.unusable." + subject.removeprefix("heimdex.")


def key_subject(digest: str) -> str:
    """Return the subject of an idempotency key in its bucket. `digest`: the key's digest in hexadecimal."""
    return f"$KV.{IDEMPOTENCY.removeprefix('KV_')}.{digest}"


def stored_filter(job_id: str) -> str:
    """Return the filter for one job's hand-overs, terminal events and failed attempts, republished once stored."""
    return f"{STORED}.*.*.{job_id}"


def stored_subject(token: str) -> str:
    """Return the filter for the stored messages of HEIMDEX_JOBS with this token, of all jobs."""
    return f"{STORED}.jobs.{token}.*"


def subject_of_stored(subject: str) -> str:
    """Return the original subject of a republished message: `heimdex.<rest>` for `heimdex-stored.<rest>`."""
    return "heimdex." + subject.removeprefix(f"{STORED}.")


def stage_filter(stage: str) -> str:
    """Return the filter of a stage's durable consumer on HEIMDEX_JOBS."""
    return f"heimdex.jobs.{stage}.*"
