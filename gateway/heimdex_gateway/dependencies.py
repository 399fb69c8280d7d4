"""What the routes work with: one gateway's connections and what it knows."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from heimdex_callbacks.validation import CallbackValidation
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_gateway.installation import InstallationCheck
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.recently_accepted import RecentlyAccepted
from heimdex_gateway.jobs.repository import Database
from heimdex_gateway.jobs.status import StatusReader
from heimdex_gateway.jobs.subscriptions import Subscriptions
from heimdex_gateway.middleware.access import AccessControl
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
    admission: Admission
    subscriptions: Subscriptions
    access: AccessControl
    callbacks: CallbackValidation
    accepted: RecentlyAccepted
    installation: InstallationCheck
    status: StatusReader = field(init=False)
    #: What goes on though its caller has been answered.
    background_tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.status = StatusReader(self.broker, self.database)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start what may take longer than an answer; kept until it is done, for a moment also when the process ends."""
        task = asyncio.create_task(work)
        self.background_tasks.add(task)
        task.add_done_callback(self.background_tasks.discard)
        return task
