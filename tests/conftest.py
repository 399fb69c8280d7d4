"""Fixtures for every level of tests: servers, a fresh database, the services as processes, an HTTP client.

A fixture costs nothing where it is not asked for. The unit tests ask for none of these.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
import uvloop

from tests.support import auditor, servers
from tests.support.api import Api
from tests.support.other_host import OtherHost, OtherPostgres
from tests.support.pipelines.scripted import Script
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import System

# A slow shared machine must not fail a property that holds.
hypothesis.settings.register_profile(
    "heimdex", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("heimdex")

NewSystem = Callable[..., System]

#: Their tests share a running system, so they go to one worker of xdist. (Its own marker for this, xdist_group, does
#: nothing with pytest 9.2.)
TOGETHER = (
    *(
        f"tests/system/api/test_{name}.py"
        for name in (
            "batch",
            "cancel",
            "cli",
            "errors",
            "history",
            "listing",
            "once",
            "parameters",
            "retry",
            "retry_many",
            "stream",
            "tenants",
            "wait",
        )
    ),
)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The services' own: it has ways of its own to say that a connection broke."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "allows(*kinds): what this test's fault may make services log (tests/support/auditor)"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    auditor.known(allowed(item))


def allowed(item: pytest.Item) -> list[str]:
    """The kinds of findings that the markers of this test, its class and its module allow."""
    return [kind for marker in item.iter_markers("allows") for kind in marker.args]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Any test to any worker, but for the files that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return path if path in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder of this test's own that other users may pass through."""
    folder = servers.temporary_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nats(scratch: Path) -> Iterator[NatsServer]:
    """A nats-server of this test's own, with nothing in it."""
    server = servers.start_nats(scratch)
    yield server
    servers.remove(server)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One Postgres for all tests of this process: do not stop it (`own_postgres` may be stopped)."""
    folder = servers.temporary_folder()
    server = servers.start_postgres(folder)
    yield server
    servers.remove(server)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_postgres(scratch: Path) -> Iterator[PostgresServer]:
    """A Postgres of this test's own, to be stopped, killed and started."""
    server = servers.start_postgres(scratch)
    yield server
    servers.remove(server)


@pytest.fixture
def other_postgres(scratch: Path) -> Iterator[OtherPostgres]:
    """A Postgres of this test's own on another host, whose link may die."""
    host = OtherHost()
    try:
        server = OtherPostgres(scratch, host)
        server.start()
        yield server
        servers.remove(server)
    finally:
        host.remove()


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """An empty database of this test's own, on the shared server."""
    return servers.new_database(postgres)


@pytest.fixture
def new_system(scratch: Path, request: pytest.FixtureRequest) -> Iterator[NewSystem]:
    """Makes a System from a NATS URL and a database URL; ends its processes, and audits their logs."""
    made: list[System] = []

    def make(nats_url: str, database_url: str, **env: str | None) -> System:
        folder = scratch / f"system-{len(made)}"
        folder.mkdir()
        made.append(System(nats_url, database_url, folder, env))
        made[-1].allow_only(*allowed(request.node))
        return made[-1]

    yield make
    for system in made:
        system.end()
    for system in made:
        system.check_logs()


@pytest.fixture
def system(new_system: NewSystem, nats: NatsServer, database_url: str) -> System:
    """Services around a NATS server and a database of this test's own; none is started yet."""
    return new_system(nats.url, database_url)


@pytest.fixture
def script(scratch: Path) -> Script:
    """What the stages of the job type `scripted` are to do: `system.env |= script.env`."""
    return Script(scratch / "script")


@pytest_asyncio.fixture
async def api(system: System) -> AsyncIterator[Api]:
    """A client of the system's gateway."""
    async with Api(system.url) as client:
        yield client
