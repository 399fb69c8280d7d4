"""Every subject, stream and durable consumer, with its settings, as data. Nobody else spells one.

Subjects are fixed: operators' scripts listen to them. `runtime.jetstream.topology` makes the streams from this data.
"""

from dataclasses import dataclass
from typing import Any, Final

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


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable pull consumer. `ack_wait_seconds`: how long a silent holder keeps a message.

    more_subjects: what it takes beside `filter_subject`.
    """

    name: str
    filter_subject: str
    ack_wait_seconds: float
    more_subjects: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """The consumer as JetStream's API takes it."""
        return without_none(self.wanted())

    def wanted(self) -> dict[str, Any]:
        """All that matters of the consumer, in JetStream's own names; None: it must not be set.

        `max_deliver` is unlimited because JetStream falls silent at its limit and keeps the message: the worker
        counts. `max_ack_pending` is unlimited because each job in back-off occupies a slot of it.
        """
        return {
            "durable_name": self.name,
            "name": self.name,
            **self._filter(),
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_wait": int(self.ack_wait_seconds * NANOSECOND),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "max_waiting": 4096,
            # What an operator may set, and would hold deliveries back, cut them short or end the consumer.
            "backoff": None,
            "headers_only": False,
            "inactive_threshold": 0,
            "max_batch": 0,
            "max_bytes": 0,
            "max_expires": 0,
            "mem_storage": False,
            "num_replicas": 0,
            "priority_groups": None,
            "rate_limit_bps": 0,
        }

    def _filter(self) -> dict[str, Any]:
        if self.more_subjects:
            return {"filter_subject": None, "filter_subjects": [self.filter_subject, *self.more_subjects]}
        return {"filter_subject": self.filter_subject, "filter_subjects": None}


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream with its consumers; `options` are JetStream's own names, durations in nanoseconds."""

    name: str
    subjects: tuple[str, ...]
    options: dict[str, Any]
    consumers: tuple[Consumer, ...]

    def config(self, replicas: int, subjects: tuple[str, ...] | None = None) -> dict[str, Any]:
        """The stream as JetStream's API takes it; `subjects` stands in for its own while it is being made."""
        return without_none(self.wanted(replicas, subjects))

    def wanted(self, replicas: int, subjects: tuple[str, ...] | None = None) -> dict[str, Any]:
        """All that matters of the stream, in JetStream's own names; None: it must not be set."""
        return {
            "name": self.name,
            "subjects": list(self.subjects if subjects is None else subjects),
            "num_replicas": replicas,
            "discard": "new",
            "allow_direct": True,
            "duplicate_window": 120 * NANOSECOND,
            # No limit that is not ours: a stream that reaches one discards or refuses messages.
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            # Nothing that stores what nobody published to us, stores it elsewhere, or stores no more.
            "sources": None,
            "mirror": None,
            "subject_transform": None,
            "republish": None,
            "persist_mode": None,
            "no_ack": False,
            "sealed": False,
            "deny_delete": False,
            **self.options,
        }

    def waiting_subject(self) -> str:
        """A subject that nobody uses: the stream waits on it until its consumers exist.

        A message published to an interest stream before its consumer exists is acknowledged and dropped.
        """
        return f"heimdex-not-ready.{self.name}"


def without_none(config: dict[str, Any]) -> dict[str, Any]:
    """What JetStream is sent: an option that is left out is unset."""
    return {name: value for name, value in config.items() if value is not None}


def _republish(channel: str) -> dict[str, Any]:
    """What the stream has stored, told to whoever listens: unlike the publish itself, never one that was refused."""
    return {
        "src": f"heimdex.{channel}.*.*",
        "dest": f"{STORED}.{channel}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
    }


def streams(stages: tuple[str, ...], ack_wait_seconds: float) -> tuple[Stream, ...]:
    """The whole topology for these stages."""
    # A store that waits for Postgres keeps its messages alive itself, so its lease need not follow the stages'.
    store_wait = max(30.0, ack_wait_seconds)
    return (
        Stream(
            JOBS,
            ("heimdex.jobs.*.*",),
            # "old", since schedules forbid "new"; the stream has no limits of its own, so nothing is ever discarded.
            {
                "retention": "interest",
                "storage": "file",
                "discard": "old",
                "allow_msg_schedules": True,
                "allow_atomic": True,
                "republish": _republish("jobs"),
            },
            (
                Consumer(STATUS_STORE, "heimdex.jobs.*.*", store_wait),
                # Nobody ever pulls this one: it holds a job for later, which the status store's acknowledgement alone
                # would remove before its time. Firing removes it.
                Consumer(LATER, f"heimdex.jobs.{LATER}.*", store_wait),
                *(Consumer(stage, stage_filter(stage), ack_wait_seconds) for stage in stages),
            ),
        ),
        Stream(
            ATTEMPTS,
            ("heimdex.attempts.*.*",),
            {"retention": "interest", "storage": "file", "republish": _republish("attempts")},
            (Consumer(STATUS_STORE, "heimdex.attempts.*.*", store_wait),),
        ),
        Stream(
            # The newest tick of each running stage, in memory: losing it costs nothing but a moment's precision.
            PROGRESS,
            ("heimdex.progress.*.*",),
            {
                "retention": "limits",
                "storage": "memory",
                "discard": "old",
                "max_msgs_per_subject": 1,
                "max_age": 300 * NANOSECOND,
                "max_bytes": 64 * 1024 * 1024,
                "duplicate_window": 2 * NANOSECOND,
            },
            (Consumer(STATUS_STORE, "heimdex.progress.*.*", store_wait),),
        ),
        Stream(
            # What is owed to those who gave a callback_url, and how each try to deliver it went.
            CALLBACKS,
            ("heimdex.callbacks.*.*",),
            {"retention": "interest", "storage": "file"},
            (
                Consumer(
                    STATUS_STORE,
                    callback_subject(CALLBACK_DELIVERED, "*"),
                    store_wait,
                    (callback_subject(CALLBACK_FAILED, "*"), callback_subject(CALLBACK_GIVEN_UP, "*")),
                ),
                Consumer(
                    GATEWAY,
                    callback_subject(CALLBACK_DUE, "*"),
                    ack_wait_seconds,
                    (callback_subject(CALLBACK_FAILED, "*"),),
                ),
            ),
        ),
        Stream(
            # Which job an idempotency key made: a key-value bucket, read with `nats kv` by its name without KV_.
            IDEMPOTENCY,
            (f"$KV.{IDEMPOTENCY.removeprefix('KV_')}.>",),
            {
                "retention": "limits",
                "storage": "file",
                "max_msgs_per_subject": 1,
                "max_age": 24 * 3600 * NANOSECOND,
                "deny_delete": True,
                "allow_rollup_hdrs": True,
            },
            (),
        ),
        Stream(
            # Messages that nothing can be done with, kept for a person to look at, replay or delete.
            UNUSABLE,
            ("heimdex.unusable.>",),
            {
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_age": 30 * 24 * 3600 * NANOSECOND,
                # The server reserves this much of its disk.
                "max_bytes": 64 * 1024 * 1024,
            },
            (),
        ),
    )
