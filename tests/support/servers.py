"""NATS and Postgres for the tests: embedded servers, or containers if HEIMDEX_TEST_BACKEND=containers.

The fixtures in conftest.py provide them. If a server is unavailable, the test is skipped on a developer's machine and
fails in CI.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pytest

NATS_IMAGE = "nats:2.12-alpine"
POSTGRES_IMAGE = "postgres:18-alpine"

_T = TypeVar("_T")


class NatsServer(Protocol):
    """A nats-server with JetStream. Its address and its streams survive `stop`, `kill` and `start`."""

    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def wipe(self) -> None:
        """Remove everything that the server has stored. The server must be stopped."""


class PostgresServer(Protocol):
    """A Postgres server. Its address and its data survive `stop`, `kill` and `start`."""

    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


def on_containers() -> bool:
    """Whether this run uses Docker containers."""
    return os.environ.get("HEIMDEX_TEST_BACKEND", "") == "containers"


def missing(reason: str) -> NoReturn:
    """Skip the test on a developer's machine, or fail it in CI, because something that it needs is unavailable."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def temporary_folder() -> Path:
    """Create a temporary folder.

    pytest's tmp_path is not used: under root it is private to root, and Postgres then runs as another user.
    """
    return Path(tempfile.mkdtemp(prefix="heimdex-test-"))


def start_nats(folder: Path, sync_interval: str = "2m") -> NatsServer:
    """Start a nats-server with an empty store on a free port.

    sync_interval: by default that of nats-server. It is enough for tests that kill processes and not the machine,
    because the kernel keeps data that are written but not synced.
    """
    server: Any = _ContainerNats() if on_containers() else _embedded_nats(folder, sync_interval)
    _start(server, "nats-server")
    return server


def start_postgres(folder: Path) -> PostgresServer:
    """Start a Postgres server with an empty database `heimdex`."""
    server: Any = _ContainerPostgres() if on_containers() else _embedded_postgres(folder)
    _start(server, "Postgres")
    return server


def reload_nats(server: Any, extra: str) -> None:
    """Reload the configuration of an embedded server, with these lines in addition to its own.

    Returns at once, so that the test must wait for the effect. The next start removes the lines.
    """
    path: Path = server.directory / "nats.conf"
    own = path.read_text().partition("# In addition\n")[0]
    path.write_text(f"{own}# In addition\n{extra}\n")
    os.kill(server.pid, signal.SIGHUP)


def remove(server: Any) -> None:
    """Stop the server for good; a container is removed with its data."""
    if hasattr(server, "remove"):
        server.remove()
    else:
        server.kill()


def _start(server: Any, name: str) -> None:
    try:
        server.start()
    except OSError as error:
        missing(f"{name} cannot be started here: {error}")


def _embedded_nats(folder: Path, sync_interval: str) -> NatsServer:
    try:
        from heimdex_cli.embedded.nats_server import EmbeddedNats
    except ImportError as error:
        missing(f"the embedded NATS server is not installed: {error}")

    class _Nats(EmbeddedNats):
        def wipe(self) -> None:
            shutil.rmtree(folder / "nats" / "jetstream", ignore_errors=True)

    return _Nats(folder / "nats", sync_interval=sync_interval)


def _embedded_postgres(folder: Path) -> PostgresServer:
    try:
        from heimdex_cli.embedded.postgres import EmbeddedPostgres
    except ImportError as error:
        missing(f"the embedded Postgres is not installed: {error}")
    return EmbeddedPostgres(folder / "postgres")


class _Container:
    """A container with a fixed host port, so that its address survives a restart."""

    def __init__(self) -> None:
        from heimdex_cli.embedded.ports import free_port

        self.port = free_port()
        self.container: Any = None

    def make(self) -> Any:
        raise NotImplementedError

    def start(self) -> None:
        if self.container is not None:
            self.container.get_wrapped_container().start()
            self.container._connect() if hasattr(self.container, "_connect") else None
            return
        try:
            self.container = self.make()
            self.container.start()
        except Exception as error:
            self.container = None
            missing(f"Docker cannot run the container: {error!r}")

    def stop(self) -> None:
        self.container.get_wrapped_container().stop(timeout=10)

    def kill(self) -> None:
        self.container.get_wrapped_container().kill()

    def remove(self) -> None:
        if self.container is not None:
            self.container.stop()

    @property
    def host(self) -> str:
        return str(self.container.get_container_host_ip())


class _ContainerNats(_Container):
    def make(self) -> Any:
        from testcontainers.community.nats import NatsContainer

        container = NatsContainer(NATS_IMAGE).with_command("--jetstream --store_dir /data")
        return container.with_bind_ports(4222, self.port)

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def wipe(self) -> None:
        self.container.stop()
        self.container = None


class _ContainerPostgres(_Container):
    def make(self) -> Any:
        from testcontainers.community.postgres import PostgresContainer

        container = PostgresContainer(
            POSTGRES_IMAGE, username="heimdex", password="heimdex", dbname="heimdex", driver=None
        )
        return container.with_bind_ports(5432, self.port)

    @property
    def url(self) -> str:
        return f"postgresql://heimdex:heimdex@{self.host}:{self.port}/heimdex"


def run_async(make: Callable[[], Awaitable[_T]]) -> _T:
    """Run a coroutine from a synchronous fixture, in a thread and a loop of its own."""

    async def run() -> _T:
        return await make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def new_database(server: PostgresServer) -> str:
    """Create an empty database on this server and return its URL."""
    import asyncpg

    name = f"test_{uuid.uuid4().hex}"

    async def create() -> None:
        connection = await asyncpg.connect(server.url)
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()

    run_async(create)
    return urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
