"""The console script `heimdex-status-store`: connects the recorder to NATS and Postgres."""

import asyncio
import sys

import msgspec

from heimdex_contracts import pipelines, streams, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime import micro, process, settings
from heimdex_contracts.runtime.backoff import repeat
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
from heimdex_status_store.refusals import Refusals
from heimdex_status_store.retention import prune
from heimdex_status_store.stage_watch import StageWatch

NAME = "heimdex-status-store"
USAGE = """usage: heimdex-status-store                record the events of every job in Postgres
       heimdex-status-store --take-over    assign the streams of this NATS account to this database, and exit"""


def main() -> None:
    """Run the status store. Never returns.

    Exits with 0 after a signal to stop, with 2 for an unusable setting or for streams of another installation.
    """
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
    config = settings.read(service="status-store")
    pipelines.load(config.pipelines)
    return config


def _read_quiet_settings() -> Settings:
    """Settings for a command that a person runs: its log has only warnings and errors."""
    return msgspec.structs.replace(settings.read(service="status-store"), log_level="warning")


async def take_over(running: Process) -> None:
    """Assign the streams to this database, print the result to stdout, and return."""
    running.exit_code = process.EXIT_BROKEN  # until it has succeeded
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
    """Record events until the process is stopped; then write the events that have arrived."""
    config, broker, log = running.settings, running.broker, running.log
    database = Database(config.database_url, log)
    if not await running.connect():
        return
    known = pipelines.load(config.pipelines)
    required_streams = streams.for_stages(known.queue_names, config.ack_wait_seconds)
    topology = Topology(broker, required_streams, config.stream_replicas, log, own=(subjects.STATUS_STORE,))
    if not await running.unless_stopped(topology.start()) or not await running.unless_stopped(_wait_for(database)):
        return
    # Its own connection, so that the reconciler does not delay the recorder.
    upkeep_database = Database(config.database_url, log)
    installation = Installation(broker, upkeep_database, log)
    if not await running.unless_stopped(installation.settle()):
        return
    publisher = Publisher(broker, log, lambda: topology.problem_of(subjects.JOBS) or installation.problem)
    refusals = Refusals(broker, publisher, upkeep_database, config.unknown_after_seconds, log)
    counters = micro.Counters(subjects.STATUS_STORE, "heimdex.*.*.*", subjects.STATUS_STORE)
    counters.details["refused_jobs"] = refusals.counts
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
    stages = StageWatch(broker, known, log)
    counters.details |= {"stages_without_workers": stages.without_workers, "undeclared_stages": stages.undeclared}
    await micro.register(
        broker.nc, NAME, "records every event of every job in Postgres", counters, metadata=installation.metadata
    )
    leases.start()
    work = asyncio.create_task(recorder.run())
    checking = asyncio.create_task(installation.run())
    upkeep = [
        checking,
        asyncio.create_task(database.keep()),
        asyncio.create_task(installations.Watch(broker, log).run()),
        asyncio.create_task(Reconciler(broker, topology, upkeep_database, publisher, refusals, log).run()),
        asyncio.create_task(refusals.run()),
        asyncio.create_task(stages.run()),
        asyncio.create_task(prune(upkeep_database, config.retention_days, log)),
    ]
    await recorder.start()
    running.ready()
    stop = asyncio.ensure_future(running.stopping.wait())
    await asyncio.wait({work, stop, checking}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()  # raises if there was a bug: the process ends, and is restarted
    log.info("stopping")
    refusal = checking.exception() if checking.done() else None
    for task in upkeep:
        task.cancel()
    await upkeep_database.close()
    # Messages of another installation are not written: they are redelivered there after their ack wait.
    deadline = running.stop_by() - 1 if refusal is None else asyncio.get_running_loop().time()
    await recorder.stop(deadline)
    await asyncio.wait({work}, timeout=max(0.1, deadline - asyncio.get_running_loop().time()))
    await leases.stop()
    await database.close()
    if refusal is not None:
        raise refusal


async def _wait_for(database: Database) -> None:
    """Return when Postgres is available and has the schema."""
    async for _ in repeat(0.1, 1.0):
        try:
            await database.run(lambda connection: connection.fetchval("SELECT 1"))
            return
        except OUTAGE:
            continue
