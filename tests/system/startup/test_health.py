"""A process touches its health file only while it can do its work."""

from pathlib import Path

import pytest

from tests.conftest import NewSystem
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import System
from tests.support.waiting import eventually, never
from tests.support.watching import JOBS, Observer

#: Longer than the interval at which a process touches its file.
INTERVAL_SECONDS = 4


def health_file(system: System, name: str) -> Path:
    """Start this service with a health file, which does not exist yet."""
    path = system.folder / f"{name}.healthy"
    system.start(name, {"HEIMDEX_HEALTH_FILE": str(path)})
    return path


async def test_a_status_store_that_waits_for_postgres_is_not_healthy_until_it_records(
    new_system: NewSystem, nats: NatsServer, own_postgres: PostgresServer
) -> None:
    own_postgres.stop()
    system = new_system(nats.url, own_postgres.url)
    file = health_file(system, "status-store")
    await system["status-store"].wait_log("postgres_waiting")
    await never(file.exists, INTERVAL_SECONDS)
    own_postgres.start()
    await eventually(file.exists)
    assert system["status-store"].logged("ready")


@pytest.mark.parametrize("name", ["gateway", "extracting", "status-store"])
async def test_a_service_whose_streams_cannot_be_made_is_not_healthy_until_they_are(
    system: System, nats: NatsServer, name: str
) -> None:
    async with Observer(nats.url, "nothing") as seen:
        # NATS cannot change the storage of a stream.
        await seen.api(f"STREAM.CREATE.{JOBS}", {"name": JOBS, "subjects": ["heimdex.jobs.*.*"], "storage": "memory"})
        file = health_file(system, name)
        await system[name].wait_log("jetstream_waiting")
        await never(file.exists, INTERVAL_SECONDS)
        await seen.api(f"STREAM.DELETE.{JOBS}")
        await eventually(file.exists)
    assert system[name].logged("ready")


async def test_a_health_file_is_not_touched_while_nats_is_down(system: System, nats: NatsServer) -> None:
    nats.stop()
    file = health_file(system, "extracting")
    await system["extracting"].wait_log("nats_waiting")
    await never(file.exists, INTERVAL_SECONDS)
    nats.start()
    await eventually(file.exists)
    assert system["extracting"].logged("ready")
