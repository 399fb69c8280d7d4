"""The HTTP bodies that are answered, apart from what goes over the wire inside."""

import msgspec

from heimdex_contracts.job_object import JobId


class JobAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted job."""

    job_id: JobId


class JobsAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted batch: the ids in the order of the jobs."""

    job_ids: list[JobId]


class JobsRetried(msgspec.Struct, frozen=True):
    """How many jobs run again, and whether there are more of them: then ask again."""

    retried: int
    more: bool


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
