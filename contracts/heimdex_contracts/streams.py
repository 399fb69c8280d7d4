"""Every stream and durable consumer with its settings, as data. `runtime.jetstream.topology` makes them from it."""

from dataclasses import dataclass
from typing import Any

from heimdex_contracts.subjects import (
    ATTEMPTS,
    CALLBACK_DELIVERED,
    CALLBACK_DUE,
    CALLBACK_FAILED,
    CALLBACK_GIVEN_UP,
    CALLBACKS,
    GATEWAY,
    IDEMPOTENCY,
    JOBS,
    LATER,
    NANOSECOND,
    PROGRESS,
    STATUS_STORE,
    STORED,
    UNUSABLE,
    callback_subject,
    stage_filter,
)


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


def for_stages(stages: tuple[str, ...], ack_wait_seconds: float) -> tuple[Stream, ...]:
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
