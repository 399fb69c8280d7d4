"""Registers each process as a NATS micro service, so that `nats micro ls` and `nats micro stats` show it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from nats.aio.client import Client
from nats.micro.service import EndpointInfo, EndpointStats, Service, ServiceConfig, ServiceInfo, ServiceStats

DISTRIBUTION: Final = "heimdex-jobs"


def package_version() -> str:
    """Return the version of the installed distribution, such as 0.1.0."""
    return version(DISTRIBUTION)


@dataclass(slots=True)
class Counters:
    """Counts a process's units of work. A unit is an HTTP request, a delivery or a recorded message.

    details: further statistics, in the field `data` of `.STATS`: functions by name, whose results can be encoded as
    JSON. They are called for each `.STATS` and must not block.
    """

    name: str
    subject: str
    queue_group: str
    done: int = 0
    errors: int = 0
    busy_ns: int = 0
    last_error: str = ""
    details: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def count(self, nanoseconds: int, error: str | None = None, units: int = 1) -> None:
        """Count `units` more units that took `nanoseconds` each. error: the text of an error, which counts once."""
        self.done += units
        self.busy_ns += nanoseconds * units
        if error is not None:
            self.errors += 1
            self.last_error = error


#: Returns a service's current metadata: text by key.
Metadata = Callable[[], dict[str, str]]


class _Reporting(Service):
    """Reports our own counters: nats-py counts requests to endpoints, but our work arrives through pulls and HTTP."""

    def __init__(self, client: Client, config: ServiceConfig, counters: Counters, metadata: Metadata) -> None:
        super().__init__(client, config)
        self._counters = counters
        self._read_metadata = metadata

    def stats(self) -> ServiceStats:
        counters = self._counters
        stats: ServiceStats = super().stats()
        stats.endpoints = [
            EndpointStats(
                name=counters.name,
                subject=counters.subject,
                queue_group=counters.queue_group,
                num_requests=counters.done,
                num_errors=counters.errors,
                processing_time=counters.busy_ns,
                average_processing_time=counters.busy_ns // max(1, counters.done),
                last_error=counters.last_error,
                data={name: read() for name, read in counters.details.items()} or None,
            )
        ]
        return stats

    def info(self) -> ServiceInfo:
        info: ServiceInfo = super().info()
        counters = self._counters
        info.endpoints = [EndpointInfo(counters.name, counters.subject, counters.queue_group)]
        info.metadata = self._read_metadata()
        return info


async def register(
    client: Client, name: str, description: str, counters: Counters, metadata: Metadata = dict
) -> Service:
    """Register a micro service that answers `$SRV.PING`, `.INFO` and `.STATS`, also after reconnections.

    metadata: called for each `.INFO`; must not block.
    """
    config = ServiceConfig(name=name, version=package_version(), description=description)
    service = _Reporting(client, config, counters, metadata)
    await service.start()
    return service
