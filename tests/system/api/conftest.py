"""Running systems for tests without faults: one whose stages follow a test's script, and one with `mock_process`."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.conftest import allowed
from tests.support import servers
from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import System
from tests.support.watching import Observer


@dataclass
class Live:
    """A running system, and the script of its stages. No worker of `mock_process` runs, so such a job stays queued."""

    system: System
    nats: NatsServer
    script: Script


@pytest.fixture(scope="session")
def live_system(postgres: PostgresServer) -> Iterator[Live]:
    """One system per xdist worker, for the modules in TOGETHER (tests/conftest.py). Do not stop any part of it."""
    folder = servers.temporary_folder()
    nats = servers.start_nats(folder)
    system = System(nats.url, servers.new_database(postgres), folder)
    script = Script(folder / "script")
    system.env |= script.env
    try:
        system.start_all(stages=STAGES)
        servers.run_async(system.ready)
        yield Live(system, nats, script)
    finally:
        system.end()
        servers.remove(nats)
    system.check_logs()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def live(live_system: Live, request: pytest.FixtureRequest) -> Iterator[Live]:
    """The running system with an empty script: every stage succeeds at once. The gate is opened after the test."""
    live_system.script.clear()
    live_system.system.allow_only(*allowed(request.node))
    yield live_system
    live_system.script.open_gate()
    live_system.system.check_logs()


@pytest_asyncio.fixture
async def http(live: Live) -> AsyncIterator[Api]:
    """An HTTP client of the running system."""
    async with Api(live.system.url) as api:
        yield api


@pytest_asyncio.fixture
async def stored(live: Live) -> AsyncIterator[Observer]:
    """An observer of every message that the running system's streams store. It sees no message that they refuse."""
    async with Observer(live.nats.url, "heimdex-stored.>") as observer:
        yield observer


@pytest.fixture
def scripted(system: System, script: Script) -> System:
    """A system of this test whose stages follow `script`. No service is started yet."""
    system.env |= script.env
    return system


@pytest.fixture(scope="module")
def shared_system(postgres: PostgresServer) -> Iterator[System]:
    """A running system with all services ready. Do not stop any part of it.

    Modules that use it must be in TOGETHER (tests/conftest.py).
    """
    folder = servers.temporary_folder()
    nats = servers.start_nats(folder)
    system = System(nats.url, servers.new_database(postgres), folder)
    try:
        system.start_all()
        servers.run_async(system.ready)
        yield system
    finally:
        system.end()
        servers.remove(nats)
    system.check_logs()
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture
async def shared_api(shared_system: System) -> AsyncIterator[Api]:
    """An HTTP client of the shared system."""
    async with Api(shared_system.url) as api:
        yield api
