"""The bodies of /healthz and /readyz."""

import msgspec


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
