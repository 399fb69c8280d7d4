"""The bodies of /healthz and /readyz."""

import msgspec


class Health(msgspec.Struct, frozen=True):
    """The process is alive. This does not imply that NATS or Postgres can be used."""

    ok: bool
    service: str
    version: str
    env: str
    started_at: str


class DependencyState(msgspec.Struct, frozen=True):
    """Whether a dependency can be used now. `detail`: its state, or the reason why it cannot be used."""

    ok: bool
    detail: str


class Readiness(msgspec.Struct, frozen=True):
    """Whether the gateway can process requests now. `detail`: a sentence for a human reader."""

    ok: bool
    detail: str
    nats: DependencyState
    postgres: DependencyState
