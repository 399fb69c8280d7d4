"""What the routes work with: one gateway's connections and what it knows."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from heimdex_callbacks.validation import Acceptance
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_gateway.installation import InstallationCheck
from heimdex_gateway.jobs.admission import Room
from heimdex_gateway.jobs.recently_accepted import Accepted
from heimdex_gateway.jobs.repository import Database
from heimdex_gateway.jobs.status import Reads
from heimdex_gateway.jobs.subscriptions import Watches
from heimdex_gateway.middleware.access import Doors
from heimdex_gateway.schemas.health import Health


@dataclass
class Gateway:
    """Made once a process, kept in the application's state."""

    broker: Broker
    topology: Topology
    publisher: Publisher
    database: Database
    pipelines: Pipelines
    health: Health
    room: Room
    watches: Watches
    doors: Doors
    callbacks: Acceptance
    accepted: Accepted
    installation: InstallationCheck
    reads: Reads = field(init=False)
    #: What goes on though its caller has been answered.
    afterwards: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reads = Reads(self.broker, self.database)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start what may take longer than an answer; kept until it is done, for a moment also when the process ends."""
        task = asyncio.create_task(work)
        self.afterwards.add(task)
        task.add_done_callback(self.afterwards.discard)
        return task
