"""A running system that the tests of one module share, where starting one for each would buy nothing."""

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.harness import servers
from tests.harness.api import Api
from tests.harness.servers import PostgresServer
from tests.harness.services import System


@pytest.fixture(scope="module")
def shared_system(postgres: PostgresServer) -> Iterator[System]:
    """Everything up and ready; do not stop any of it. The module must be in TOGETHER (tests/conftest.py)."""
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
    """A client of the shared system."""
    async with Api(shared_system.url) as api:
        yield api
