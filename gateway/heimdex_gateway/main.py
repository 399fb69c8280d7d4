"""The console script `heimdex-gateway`. It serves HTTP at once, and connects to NATS and Postgres when they are up."""

import asyncio
import contextlib
import socket
from typing import Final

import uvicorn

from heimdex_callbacks.concurrency import MAX_AT_ONCE
from heimdex_callbacks.dispatcher import Dispatcher
from heimdex_callbacks.resolver import CALLING_THREADS, SUBMITTING_THREADS, Resolver
from heimdex_callbacks.sender import Sender
from heimdex_callbacks.validation import CallbackValidation
from heimdex_contracts import messages, pipelines, streams, subjects
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.job_object import moment
from heimdex_contracts.runtime import micro, process, settings
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from heimdex_contracts.runtime.process import Process
from heimdex_contracts.runtime.settings import Settings
from heimdex_gateway.app import create_app
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.installation import InstallationCheck
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.recently_accepted import RecentlyAccepted
from heimdex_gateway.jobs.repository import Database
from heimdex_gateway.jobs.subscriptions import Subscriptions
from heimdex_gateway.middleware.access import AccessControl
from heimdex_gateway.schemas.health import Health
from heimdex_gateway.server.http_protocol import BoundedHttpProtocol

NAME = "heimdex-gateway"
#: From this many requests that wait for NATS, the next one is buffered for LINGER_SECONDS, so that several share one
#: write (see `runtime.jetstream.client`).
BUSY: Final = 6
LINGER_SECONDS: Final = 0.002
#: The `service` in the body of /healthz.
SHOWN_NAME = "heimdex-api"
#: How long the process waits for background tasks when it stops.
BACKGROUND_TASKS_SECONDS = 1.0


def main() -> None:
    """Run the gateway. Exits with 0 after a signal to stop, with 2 if a setting is invalid or the port is in use."""
    listener: list[socket.socket] = []

    def read_settings() -> Settings:
        configured = settings.read()
        pipelines.load(configured.pipelines)
        listener.append(_listen(configured.host, configured.port))
        return configured

    async def serve_here(running: Process) -> None:
        await serve(running, listener[0])

    process.run(NAME, read_settings, serve_here)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(
            f"The gateway cannot listen on HEIMDEX_PORT {port} of HEIMDEX_HOST {host} ({reason}): "
            "choose another port, or free it."
        ) from None


async def serve(running: Process, listener: socket.socket) -> None:
    """Serve HTTP on this socket until the process is signaled to stop, then finish the requests in progress."""
    configured, broker, log = running.settings, running.broker, running.log
    known = pipelines.load(configured.pipelines)
    required_streams = streams.for_stages(known.queue_names, configured.ack_wait_seconds)
    topology = Topology(
        broker, required_streams, configured.stream_replicas, log, own=(subjects.GATEWAY, subjects.LATER)
    )
    database = Database(configured.database_url)
    installation = InstallationCheck(broker, database, log)
    topology.on_change.append(installation.on_change)
    # Two resolvers: callers may submit any number of host names, and looking those up must not delay the callbacks.
    submitting, calling = Resolver(SUBMITTING_THREADS), Resolver(CALLING_THREADS)
    allowed = AddressPolicy(configured.callback_allow)
    deliverer: Dispatcher | None = None
    if configured.callback_secret:
        poster = Sender(configured.callback_secret, allowed, calling, MAX_AT_ONCE)
        deliverer = Dispatcher(running, topology, poster, lambda: installation.agreed)
    publisher = Publisher(broker, log, lambda: topology.problem_of(subjects.JOBS) or installation.problem)
    gateway = Gateway(
        broker=broker,
        topology=topology,
        publisher=publisher,
        database=database,
        accepted=RecentlyAccepted(publisher, database, log),
        pipelines=known,
        subscriptions=Subscriptions(broker),
        access=AccessControl.from_settings(configured),
        callbacks=CallbackValidation(deliverer is not None, allowed, submitting),
        installation=installation,
        admission=Admission(broker, (subjects.LATER, *known.queue_names), configured.max_pending_jobs),
        health=Health(True, SHOWN_NAME, micro.package_version(), configured.env, moment(messages.now())),
    )
    counters = micro.Counters("http", "heimdex.http", "gateway")
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(gateway, log, counters),
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing in the gateway depends on the client's address
            timeout_graceful_shutdown=max(1, int(configured.shutdown_grace_seconds) - 1),
        )
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # the process handles signals

    async def connect() -> None:
        await broker.connect()
        background.append(asyncio.create_task(installation.run()))
        await topology.start()
        await installation.first_look()
        await micro.register(broker.nc, NAME, "the HTTP API", counters)
        if deliverer is not None:
            await deliverer.start()
        running.ready()

    def on_change(changed: frozenset[str]) -> None:
        if subjects.JOBS in changed:
            gateway.spawn(gateway.accepted.restore())

    topology.on_change.append(on_change)
    broker.nc.request_linger = lambda: LINGER_SECONDS if broker.nc.pending_requests >= BUSY else 0.0
    running.health.append(topology.ready.is_set)
    background = [asyncio.create_task(connect())]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    log.info("listening", host=configured.host, port=configured.port)
    if not gateway.access.keys:
        log.warning(
            "no_keys",
            message="HEIMDEX_API_KEYS is not set: everyone who can connect to this gateway can submit, read and cancel "
            f"the jobs of the tenant {messages.DEFAULT_TENANT!r}",
        )
    stop = asyncio.ensure_future(running.stopping.wait())
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping")
    gateway.subscriptions.stop()
    server.should_exit = True
    if deliverer is not None:
        await deliverer.stop(running.stop_by() - 1)
    await serving
    if gateway.background_tasks:
        await asyncio.wait(gateway.background_tasks, timeout=BACKGROUND_TASKS_SECONDS)
    for task in background:
        task.cancel()
    await gateway.database.close()
    submitting.close()
    calling.close()
