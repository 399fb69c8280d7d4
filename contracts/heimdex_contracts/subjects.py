"""Every subject, and the name of every stream and durable consumer. No other module spells one.

They are fixed: operators' scripts use them.
"""

from typing import Final

JOBS: Final = "HEIMDEX_JOBS"
ATTEMPTS: Final = "HEIMDEX_ATTEMPTS"
PROGRESS: Final = "HEIMDEX_PROGRESS"
CALLBACKS: Final = "HEIMDEX_CALLBACKS"
UNUSABLE: Final = "HEIMDEX_UNUSABLE"
IDEMPOTENCY: Final = "KV_HEIMDEX_IDEMPOTENCY"

STATUS_STORE: Final = "status-store"
#: The durable that all gateways share: it takes what is to be called back.
GATEWAY: Final = "gateway"
#: First token of the subjects on which the streams tell what they have stored.
STORED: Final = "heimdex-stored"

COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELED: Final = "canceled"
LATER: Final = "later"
#: Third tokens of `heimdex.jobs.<token>.<job_id>` that say how the job ended.
ENDS: Final = frozenset({COMPLETED, FAILED, CANCELED})
#: Third tokens of `heimdex.jobs.<token>.<job_id>` that are no stage; a stage may not be called so.
RESERVED_TOKENS: Final = ENDS | {LATER}

#: Third tokens of `heimdex.callbacks.<token>.<job_id>`. A failed try is also the next one's work.
CALLBACK_DUE: Final = "due"
CALLBACK_FAILED: Final = "failed"
CALLBACK_DELIVERED: Final = "delivered"
CALLBACK_GIVEN_UP: Final = "given-up"

NANOSECOND: Final = 1_000_000_000


def job_subject(token: str, job_id: str) -> str:
    """`heimdex.jobs.<token>.<job_id>`; the token is a stage, or how the job ended."""
    return f"heimdex.jobs.{token}.{job_id}"


def job_filter(job_id: str) -> str:
    """All messages of one job on HEIMDEX_JOBS: the filter of the successor fence."""
    return f"heimdex.jobs.*.{job_id}"


def attempt_subject(stage: str, job_id: str) -> str:
    """`heimdex.attempts.<stage>.<job_id>`."""
    return f"heimdex.attempts.{stage}.{job_id}"


def progress_subject(stage: str, job_id: str) -> str:
    """`heimdex.progress.<stage>.<job_id>`."""
    return f"heimdex.progress.{stage}.{job_id}"


def callback_subject(token: str, job_id: str) -> str:
    """`heimdex.callbacks.<token>.<job_id>`."""
    return f"heimdex.callbacks.{token}.{job_id}"


def unusable_subject(subject: str) -> str:
    """Where a message of `heimdex.<rest>` is set aside: `heimdex.unusable.<rest>`."""
    return "heimdex.unusable." + subject.removeprefix("heimdex.")


def key_subject(digest: str) -> str:
    """Where the bucket keeps an idempotency key, told by its digest (hexadecimal)."""
    return f"$KV.{IDEMPOTENCY.removeprefix('KV_')}.{digest}"


def stored_filter(job_id: str) -> str:
    """Every hand-over and failed attempt of one job that its stream has stored, as it does."""
    return f"{STORED}.*.*.{job_id}"


def stored_subject(token: str) -> str:
    """Every message of HEIMDEX_JOBS with this token that was stored, whatever its job."""
    return f"{STORED}.jobs.{token}.*"


def subject_of_stored(subject: str) -> str:
    """`heimdex-stored.jobs.<token>.<job_id>` back to `heimdex.jobs.<token>.<job_id>`."""
    return "heimdex." + subject.removeprefix(f"{STORED}.")


def stage_filter(stage: str) -> str:
    """What the durable consumer of one stage takes from HEIMDEX_JOBS."""
    return f"heimdex.jobs.{stage}.*"
