"""The console script `heimdex-status-store`: wires the recorder to NATS and Postgres."""

import asyncio
import sys

import msgspec

from heimdex_contracts import pipelines, streams, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime import micro, process, settings
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_contracts.runtime.jetstream.leases import Leases
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.process import Process
from heimdex_contracts.runtime.settings import Settings
from heimdex_status_store.database import OUTAGE, Database
from heimdex_status_store.installation import Installation
from heimdex_status_store.reconciler import Reconciler
from heimdex_status_store.recorder import Recorder
from heimdex_status_store.retention import prune

NAME = "heimdex-status-store"
USAGE = """usage: heimdex-status-store                record the events of every job in Postgres
       heimdex-status-store --take-over    once: make the streams of this NATS account this database's"""


def main() -> None:
    """Never returns: exits with 0 when told to stop, with 2 for an unusable setting or a stream that is another's."""
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        raise SystemExit(0)
    if arguments not in ([], ["--take-over"]):
        print(USAGE, file=sys.stderr)
        raise SystemExit(process.EXIT_UNUSABLE_SETTINGS)
    if arguments:
        process.run(NAME, _read_quiet_settings, take_over)
    process.run(NAME, _read_settings, serve)


def _read_settings() -> Settings:
    found = settings.read()
    pipelines.load(found.pipelines)
    return found


def _read_quiet_settings() -> Settings:
    """For a command that a person runs: of its log, what is wrong."""
    return msgspec.structs.replace(settings.read(), log_level="warning")


async def take_over(running: Process) -> None:
    """Make the streams this database's, say so on stdout, and return."""
    running.exit_code = process.EXIT_BROKEN  # unless it comes to its end
    database = Database(running.settings.database_url, running.log)
    if not await running.connect() or not await running.unless_stopped(_wait_for(database)):
        return
    try:
        print(await Installation(running.broker, database, running.log).take_over(), flush=True)
    except (*OUTAGE, BrokerUnavailable, JetStreamError) as error:
        running.log.error("not_taken_over", message=f"The streams could not be taken over: {error}. Try again.")
    else:
        running.exit_code = 0
    finally:
        await database.close()


async def serve(running: Process) -> None:
    """Record until told to stop; then write what has arrived."""
    found, broker, log = running.settings, running.broker, running.log
    database = Database(found.database_url, log)
    if not await running.connect():
        return
    required_streams = streams.for_stages(pipelines.load(found.pipelines).stage_names, found.ack_wait_seconds)
    topology = Topology(broker, required_streams, found.stream_replicas, log, own=(subjects.STATUS_STORE,))
    if not await running.unless_stopped(topology.start()) or not await running.unless_stopped(_wait_for(database)):
        return
    # A connection of its own: a sweep must not stand in the recorder's way.
    upkeep_database = Database(found.database_url, log)
    installation = Installation(broker, upkeep_database, log)
    if not await running.unless_stopped(installation.settle()):
        return
    counters = micro.Counters(subjects.STATUS_STORE, "heimdex.*.*.*", subjects.STATUS_STORE)
    ack_wait = min(stream.consumers[0].ack_wait_seconds for stream in required_streams if stream.consumers)
    holder = Holder(broker, topology)
    leases = Leases(holder, ack_wait)
    recorder = Recorder(holder, database, DeadLetters(broker, log), counters, log, ack_wait)

    async def on_reconnect() -> None:
        leases.renew_all()
        await installation.after_reconnection()
        recorder.reset()

    broker.on_reconnect.append(on_reconnect)
    topology.on_change.append(installation.on_change)
    running.health += [topology.ready.is_set, lambda: database.connected]
    await micro.register(
        broker.nc, NAME, "records every event of every job in Postgres", counters, metadata=installation.told
    )
    leases.start()
    work = asyncio.create_task(recorder.run())
    publisher = Publisher(broker, log, lambda: topology.problem_of(subjects.JOBS) or installation.problem)
    comparing = asyncio.create_task(installation.run())
    upkeep = [
        comparing,
        asyncio.create_task(database.keep()),
        asyncio.create_task(installations.Watch(broker, log).run()),
        asyncio.create_task(Reconciler(broker, topology, upkeep_database, publisher, log).run()),
        asyncio.create_task(prune(upkeep_database, found.retention_days, log)),
    ]
    await recorder.start()
    log.info("ready")
    stop = asyncio.ensure_future(running.stopping.wait())
    await asyncio.wait({work, stop, comparing}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()  # a defect: let the process end, to be started anew
    log.info("stopping")
    refusal = comparing.exception() if comparing.done() else None
    for task in upkeep:
        task.cancel()
    await upkeep_database.close()
    # What it holds of another installation comes again there, after its ack wait.
    deadline = running.stop_by() - 1 if refusal is None else asyncio.get_running_loop().time()
    await recorder.stop(deadline)
    await asyncio.wait({work}, timeout=max(0.1, deadline - asyncio.get_running_loop().time()))
    await leases.stop()
    await database.close()
    if refusal is not None:
        raise refusal


async def _wait_for(database: Database) -> None:
    """Until Postgres is there and has the schema."""
    delay = 0.1
    while True:
        try:
            await database.run(lambda connection: connection.fetchval("SELECT 1"))
            return
        except OUTAGE:
            await asyncio.sleep(delay)
            delay = min(1.0, delay * 2)
