"""Fixtures for every level of tests: servers, an empty database, the services as processes, an HTTP client.

A fixture that a test does not request costs nothing. The unit tests request none of these.
"""

import asyncio
import shutil
import signal
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

# A property that holds must not fail because a shared machine is slow.
hypothesis.settings.register_profile(
    "heimdex", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("heimdex")

NewSystem = Callable[..., System]

#: Modules whose tests share a running system. All tests of one module run on the same xdist worker. (The marker
#: xdist_group, which is meant for this, has no effect with pytest 9.2.)
TOGETHER = (
    *(
        f"tests/system/api/test_{name}.py"
        for name in (
            "batch",
            "cancel",
            "cli",
            "errors",
            "history",
            "included",
            "listing",
            "once",
            "parameters",
            "retry",
            "retry_many",
            "routes",
            "stream",
            "tenants",
            "wait",
        )
    ),
)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on uvloop, as the services do: it reports a broken connection in its own way."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    # Processes inherit an ignored signal: SIGHUP below nohup, SIGINT in the background of a script. The services must
    # get the signals that the tests send.
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    config.addinivalue_line(
        "markers",
        "allows(*kinds): kinds of findings that this test's fault may cause in the logs (tests/support/auditor)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    auditor.known(allowed(item))


def allowed(item: pytest.Item) -> list[str]:
    """Return the kinds of findings that the markers of this test, its class and its module allow."""
    return [kind for marker in item.iter_markers("allows") for kind in marker.args]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute single tests to the workers, except the modules in TOGETHER, whose tests stay on one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return path if path in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary folder of this test. Other users may traverse it, because Postgres may run as another user."""
    folder = servers.temporary_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nats(scratch: Path) -> Iterator[NatsServer]:
    """An empty nats-server of this test."""
    server = servers.start_nats(scratch)
    yield server
    servers.remove(server)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A Postgres server shared by all tests of this process. Do not stop it; use `own_postgres` for that."""
    folder = servers.temporary_folder()
    server = servers.start_postgres(folder)
    yield server
    servers.remove(server)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_postgres(scratch: Path) -> Iterator[PostgresServer]:
    """A Postgres server of this test, which it may stop, kill and start."""
    server = servers.start_postgres(scratch)
    yield server
    servers.remove(server)


@pytest.fixture
def other_postgres(scratch: Path) -> Iterator[OtherPostgres]:
    """A Postgres server of this test on another host, whose link the test may cut."""
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
    """An empty database of this test, on the shared server."""
    return servers.new_database(postgres)


@pytest.fixture
def new_system(scratch: Path, request: pytest.FixtureRequest) -> Iterator[NewSystem]:
    """A function that creates a System from a NATS URL and a database URL.

    After the test, its processes are stopped and their logs are audited.
    """
    systems: list[System] = []

    def make(nats_url: str, database_url: str, **env: str | None) -> System:
        folder = scratch / f"system-{len(systems)}"
        folder.mkdir()
        systems.append(System(nats_url, database_url, folder, env))
        systems[-1].allow_only(*allowed(request.node))
        return systems[-1]

    yield make
    for system in systems:
        system.end()
    for system in systems:
        system.check_logs()


@pytest.fixture
def system(new_system: NewSystem, nats: NatsServer, database_url: str) -> System:
    """A system with a NATS server and a database of this test. No service is started yet."""
    return new_system(nats.url, database_url)


@pytest.fixture
def script(scratch: Path) -> Script:
    """The script that the stages of the job type `scripted` follow. Enable it with `system.env |= script.env`."""
    return Script(scratch / "script")


@pytest_asyncio.fixture
async def api(system: System) -> AsyncIterator[Api]:
    """An HTTP client of the system's gateway."""
    async with Api(system.url) as client:
        yield client
