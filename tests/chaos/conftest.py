"""The chaos tests share the fixtures of the fault tests. Each run first prints the seed that repeats it."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.servers import NatsServer
from tests.system.faults.conftest import duties as duties
from tests.system.faults.test_cluster import cluster as cluster

# In the environment, so that the workers of pytest -n use the printed seed.
if int(os.environ.get("HEIMDEX_CHAOS_SEED") or 0) == 0:
    os.environ["HEIMDEX_CHAOS_SEED"] = str(random.randrange(1, 1_000_000))


def pytest_report_header() -> str:
    """Print the seed before the tests begin, where pytest does not capture it."""
    return f"HEIMDEX_CHAOS_SEED={os.environ['HEIMDEX_CHAOS_SEED']}"


@pytest.fixture
def nats(scratch: Path) -> Iterator[NatsServer]:
    """A nats-server that flushes each message, as the deployments do, so that it is as slow as theirs."""
    server = servers.start_nats(scratch, sync_interval="always")
    yield server
    servers.remove(server)
