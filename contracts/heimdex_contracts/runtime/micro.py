"""Each process as a NATS micro service, so that `nats micro ls` and `nats micro stats` show it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from nats.aio.client import Client
from nats.micro.service import EndpointInfo, EndpointStats, Service, ServiceConfig, ServiceInfo, ServiceStats

DISTRIBUTION: Final = "heimdex-jobs"


def package_version() -> str:
    """The installed distribution's version, such as 0.0.1."""
    return version(DISTRIBUTION)


@dataclass(slots=True)
class Counters:
    """What a process has done: a unit of work is a request, a delivery or a recorded message."""

    name: str
    subject: str
    queue_group: str
    done: int = 0
    errors: int = 0
    busy_ns: int = 0
    last_error: str = ""

    def count(self, nanoseconds: int, error: str | None = None, units: int = 1) -> None:
        """One more unit, or several, and how long each took."""
        self.done += units
        self.busy_ns += nanoseconds * units
        if error is not None:
            self.errors += 1
            self.last_error = error


#: What a service says of itself now, as text by key.
Metadata = Callable[[], dict[str, str]]


class _Reporting(Service):
    """nats-py counts requests to endpoints; our work arrives by pulls and by HTTP, so we bring the counts."""

    def __init__(self, client: Client, config: ServiceConfig, counters: Counters, metadata: Metadata) -> None:
        super().__init__(client, config)
        self._counters = counters
        self._told = metadata

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
            )
        ]
        return stats

    def info(self) -> ServiceInfo:
        info: ServiceInfo = super().info()
        counters = self._counters
        info.endpoints = [EndpointInfo(counters.name, counters.subject, counters.queue_group)]
        info.metadata = self._told()
        return info


async def register(
    client: Client, name: str, description: str, counters: Counters, metadata: Metadata = dict
) -> Service:
    """Answer `$SRV.PING`, `.INFO` and `.STATS` as this service from now on; survives reconnections.

    metadata: asked at each `.INFO`; must not block.
    """
    config = ServiceConfig(name=name, version=package_version(), description=description)
    service = _Reporting(client, config, counters, metadata)
    await service.start()
    return service
