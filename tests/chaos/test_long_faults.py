"""The fault tests with the durations and the numbers of jobs that docs/reliability.md promises."""

from typing import Any

import pytest

from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.cluster import Cluster
from tests.support.pipelines.behaviours import Behaviours
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.system.faults import test_cluster, test_nats_lost, test_postgres_lost, test_retry_storm

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.mark.allows("nats_silent")
async def test_nats_does_not_respond_for_thirty_seconds(system: System, api: Api, nats: Any, database_url: str) -> None:
    await test_nats_lost.go_through_a_silence(system, api, nats, database_url, seconds=30)


@pytest.mark.parametrize("fault", ["locked", "frozen", "stopped", "killed"])
async def test_postgres_cannot_be_used_for_twenty_seconds(
    new_system: NewSystem, own_postgres: Any, nats: NatsServer, fault: str
) -> None:
    system = new_system(nats.url, own_postgres.url)
    await test_postgres_lost.go_through(system, own_postgres, nats, fault, seconds=20)


async def test_three_thousand_jobs_fail_at_one_stage(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    await test_retry_storm.fail(3000, system, api, nats, duties, database_url)


@pytest.mark.allows("node_killed")
async def test_a_node_of_the_cluster_is_killed_ten_times(
    new_system: NewSystem, cluster: Cluster, database_url: str
) -> None:
    system = new_system(cluster.url, database_url, HEIMDEX_STREAM_REPLICAS="3", HEIMDEX_MOCK_TIME_SCALE="0.05")
    await test_cluster.kill_nodes(system, cluster, database_url, times=10)
