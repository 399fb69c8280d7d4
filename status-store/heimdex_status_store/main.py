"""The console script `heimdex-status-store`: wires the recorder to NATS and Postgres."""

import asyncio

from heimdex_contracts import pipelines, subjects
from heimdex_contracts.runtime import micro, process, settings
from heimdex_contracts.runtime.leases import Leases
from heimdex_contracts.runtime.process import Process
from heimdex_contracts.runtime.publishing import Publisher
from heimdex_contracts.runtime.settings import Settings
from heimdex_contracts.runtime.topology import Topology
from heimdex_contracts.runtime.unusable import SettingAside
from heimdex_status_store.database import OUTAGE, Database
from heimdex_status_store.prune import prune
from heimdex_status_store.recorder import Recorder
from heimdex_status_store.sweep import Sweep

NAME = "heimdex-status-store"


def main() -> None:
    """Never returns: exits with 0 when told to stop, with 2 for an unusable setting."""
    process.run(NAME, _read_settings, serve)


def _read_settings() -> Settings:
    found = settings.read()
    pipelines.load(found.pipelines)
    return found


async def serve(running: Process) -> None:
    """Record until told to stop; then write what has arrived."""
    found, broker, log = running.settings, running.broker, running.log
    database = Database(found.database_url, log)
    if not await running.connect():
        return
    streams = subjects.streams(pipelines.load(found.pipelines).stage_names, found.ack_wait_seconds)
    topology = Topology(broker, streams, found.stream_replicas, log, own=(subjects.STATUS_STORE,))
    if not await running.unless_stopped(topology.start()) or not await running.unless_stopped(_wait_for(database)):
        return
    counters = micro.Counters(subjects.STATUS_STORE, "heimdex.*.*.*", subjects.STATUS_STORE)
    ack_wait = min(stream.consumers[0].ack_wait_seconds for stream in streams if stream.consumers)
    leases = Leases(broker, topology, ack_wait)
    recorder = Recorder(broker, topology, database, leases, SettingAside(broker, log), counters, log, ack_wait)

    async def on_reconnect() -> None:
        leases.renew_all()
        recorder.reset()

    broker.on_reconnect.append(on_reconnect)
    running.health += [topology.ready.is_set, lambda: database.connected]
    await micro.register(broker.nc, NAME, "records every event of every job in Postgres", counters)
    leases.start()
    work = asyncio.create_task(recorder.run())
    # A connection of its own: a sweep must not stand in the recorder's way.
    upkeep_database = Database(found.database_url, log)
    publisher = Publisher(broker, log, lambda: topology.problem_of(subjects.JOBS))
    upkeep = [
        asyncio.create_task(Sweep(broker, topology, upkeep_database, publisher, log).run()),
        asyncio.create_task(prune(upkeep_database, found.retention_days, log)),
    ]
    await recorder.start()
    log.info("ready")
    stop = asyncio.ensure_future(running.stopping.wait())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()  # a defect: let the process end, to be started anew
    log.info("stopping")
    for task in upkeep:
        task.cancel()
    await upkeep_database.close()
    deadline = running.stop_by() - 1
    await recorder.stop(deadline)
    await asyncio.wait({work}, timeout=max(0.1, deadline - asyncio.get_running_loop().time()))
    await leases.stop()
    await database.close()


async def _wait_for(database: Database) -> None:
    """Until Postgres is there and has the schema."""
    pause = 0.1
    while True:
        try:
            await database.run(lambda connection: connection.fetchval("SELECT 1"))
            return
        except OUTAGE:
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)
