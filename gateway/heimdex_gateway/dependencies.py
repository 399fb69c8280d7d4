"""The dependencies of the routes: the gateway's connections, and the use cases built on them."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from litestar import Request

from heimdex_callbacks.validation import CallbackValidation
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_gateway.installation import InstallationCheck
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.cancel import Cancel
from heimdex_gateway.jobs.change import JobChanges
from heimdex_gateway.jobs.history import History
from heimdex_gateway.jobs.idempotency import IdempotentSubmit
from heimdex_gateway.jobs.recently_accepted import RecentlyAccepted
from heimdex_gateway.jobs.repository import Database
from heimdex_gateway.jobs.retry import Retry
from heimdex_gateway.jobs.status import StatusReader
from heimdex_gateway.jobs.submit import Submit
from heimdex_gateway.jobs.subscriptions import Subscriptions
from heimdex_gateway.middleware.access import AccessControl
from heimdex_gateway.schemas.health import Health

#: The time limit of a request, because the API promises a response within 5 s.
MAX_SECONDS: Final = 4.5


@dataclass
class Gateway:
    """The connections and use cases of one gateway, built once per process and stored in the application's state.

    max_seconds: as MAX_SECONDS.
    """

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
    max_seconds: float = MAX_SECONDS
    status: StatusReader = field(init=False)
    submit: Submit = field(init=False)
    idempotent_submit: IdempotentSubmit = field(init=False)
    history: History = field(init=False)
    cancel: Cancel = field(init=False)
    retry: Retry = field(init=False)
    #: Tasks that may continue after the response to their request.
    background_tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.status = StatusReader(self.broker, self.database)
        self.submit = Submit(self.publisher, self.pipelines, self.admission, self.accepted, self.installation)
        self.idempotent_submit = IdempotentSubmit(self.broker, self.publisher, self.database, self.submit)
        self.history = History(self.broker, self.database, self.subscriptions)
        changes = JobChanges(self.broker, self.publisher, self.database, self.status)
        self.cancel = Cancel(changes, self.spawn)
        self.retry = Retry(changes, self.admission, self.pipelines)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work that may continue after the response.

        The task is referenced until it is done. When the process stops, it waits a short time for such tasks.
        """
        task = asyncio.create_task(work)
        self.background_tasks.add(task)
        task.add_done_callback(self.background_tasks.discard)
        return task


def gateway_of(request: Request[Any, Any, Any]) -> Gateway:
    """The gateway that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def tenant_of(request: Request[Any, Any, Any]) -> str:
    """The tenant whose jobs this request may read and change."""
    return gateway_of(request).access.tenant_of(request)
