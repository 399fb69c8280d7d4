"""All streams and durable consumers with their settings, as data. `runtime.jetstream.topology` creates them."""

from dataclasses import dataclass
from typing import Any

from heimdex_contracts.subjects import (
    ATTEMPTS,
    CALLBACK_DELIVERED,
    CALLBACK_DUE,
    CALLBACK_FAILED,
    CALLBACK_GIVEN_UP,
    CALLBACKS,
    CHECKPOINTS,
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
    """A durable pull consumer.

    ack_wait_seconds: the lease of a delivery; without an ack or a renewal for that long, the message is redelivered.
    more_subjects: further filter subjects beside `filter_subject`.
    """

    name: str
    filter_subject: str
    ack_wait_seconds: float
    more_subjects: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """Return the consumer's configuration for JetStream's API."""
        return without_none(self.required())

    def required(self) -> dict[str, Any]:
        """Return every option with a required value, in JetStream's names. None: the option must not be set.

        `max_deliver` is unlimited: at its limit JetStream keeps the message and no longer delivers it, so the worker
        counts the attempts instead. `max_ack_pending` is unlimited: each job in back-off occupies one of its slots.
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
            # Options that an operator could set and that would delay or truncate deliveries or delete the consumer.
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
    """A stream with its consumers. `options` uses JetStream's names; durations are in nanoseconds."""

    name: str
    subjects: tuple[str, ...]
    options: dict[str, Any]
    consumers: tuple[Consumer, ...]

    def config(self, replicas: int, subjects: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return the stream's configuration for JetStream's API.

        subjects: replaces the stream's own subjects while the stream is being created.
        """
        return without_none(self.required(replicas, subjects))

    def required(self, replicas: int, subjects: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return every option with a required value, in JetStream's names. None: the option must not be set."""
        return {
            "name": self.name,
            "subjects": list(self.subjects if subjects is None else subjects),
            "num_replicas": replicas,
            "discard": "new",
            "allow_direct": True,
            "duplicate_window": 120 * NANOSECOND,
            # No limits but those in `options`: a stream that reaches a limit discards or rejects messages.
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            # No options that import messages from elsewhere, redirect them, or stop the stream from storing them.
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
        """Return an unused subject, which is the stream's only subject until its consumers exist.

        An interest stream acknowledges and drops a message that is published before its consumer exists.
        """
        return f"heimdex-not-ready.{self.name}"


def without_none(config: dict[str, Any]) -> dict[str, Any]:
    """Remove the options whose value is None: JetStream treats an omitted option as unset."""
    return {name: value for name, value in config.items() if value is not None}


def _republish(channel: str) -> dict[str, Any]:
    """Return the option that republishes stored messages. A subscriber sees no message that the stream rejected.

    A subscriber of the original subject would see rejected messages too.
    """
    return {
        "src": f"heimdex.{channel}.*.*",
        "dest": f"{STORED}.{channel}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
    }


def for_stages(stages: tuple[str, ...], ack_wait_seconds: float) -> tuple[Stream, ...]:
    """Return all streams and consumers for these stages."""
    # A status store that waits for Postgres renews its leases itself, so its ack wait may be longer than the stages'.
    store_wait = max(30.0, ack_wait_seconds)
    return (
        Stream(
            JOBS,
            ("heimdex.jobs.*.*",),
            # discard is "old" because schedules forbid "new". The stream has no limits, so nothing is ever discarded.
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
                # No process pulls from this consumer. It keeps a scheduled job in the stream: otherwise the status
                # store's acknowledgement would remove the message before its time. The firing schedule removes it.
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
            # The newest progress message of each running stage, in memory: losing it makes progress briefly inexact.
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
            # The claim of each redelivery that runs: how many attempts have begun. A full stream rejects new claims; it
            # must not discard the claims of jobs that still run.
            CHECKPOINTS,
            ("heimdex.checkpoints.*.*",),
            {
                "retention": "limits",
                "storage": "file",
                "max_msgs_per_subject": 1,
                "max_age": 7 * 24 * 3600 * NANOSECOND,
                # The server reserves this amount of disk space.
                "max_bytes": 64 * 1024 * 1024,
                "duplicate_window": 2 * NANOSECOND,
            },
            (),
        ),
        Stream(
            # The callbacks of jobs that have a callback_url, and the result of each attempt to deliver one.
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
            # Which job an idempotency key created: a key-value bucket. `nats kv` names it without the prefix KV_.
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
            # Dead letters: messages that cannot be processed, kept for a person to inspect, replay or delete.
            UNUSABLE,
            ("heimdex.unusable.>",),
            {
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_age": 30 * 24 * 3600 * NANOSECOND,
                # The server reserves this amount of disk space.
                "max_bytes": 64 * 1024 * 1024,
            },
            (),
        ),
    )
