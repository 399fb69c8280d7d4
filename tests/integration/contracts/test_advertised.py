"""A cluster advertises the addresses of its servers to its clients, often addresses that clients cannot reach."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.settings import Settings
from tests.support.recording_logger import RecordingLogger
from tests.support.waiting import eventually


@asynccontextmanager
async def silent_port() -> AsyncIterator[tuple[int, list[int]]]:
    """A port that accepts connections and sends nothing; the list has one entry for each."""
    connections: list[int] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], connections


def start(folder: Path, name: str, port: int, advertised: int, own_route: int, other_route: int) -> ChildProcess:
    """Start one of two servers of a cluster, which advertises the port `advertised` to its clients."""
    config = folder / f"{name}.conf"
    config.write_text(
        f"server_name: {name}\nlisten: 127.0.0.1:{port}\nclient_advertise: 127.0.0.1:{advertised}\n"
        f"cluster {{ name: tests, listen: 127.0.0.1:{own_route}, routes: [nats://127.0.0.1:{other_route}] }}\n"
    )
    argv = [Path(sys.executable).with_name("nats-server"), "-c", config]
    server = ChildProcess(argv, log_path=folder / f"{name}.log", stop_seconds=15, rank=1)
    server.start()
    return server


async def is_advertised(port: int, advertised: int) -> bool:
    """Whether this server advertises that port to new clients."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    line = await reader.readline()
    writer.close()
    return f"127.0.0.1:{advertised}".encode() in line


async def test_only_the_configured_servers_are_connected_to(scratch: Path, journal: RecordingLogger) -> None:
    free = list({free_port() for _ in range(20)})  # a port may be found free twice
    ports, routes = free[:2], free[2:4]
    async with silent_port() as (advertised, taken):
        first = start(scratch, "first", ports[0], ports[0], *routes)
        second = start(scratch, "second", ports[1], advertised, *reversed(routes))
        broker = Broker(Settings(nats_url=f"nats://127.0.0.1:{ports[0]}"), "test", cast("Any", journal))
        try:
            for number in range(3):
                await eventually(lambda: is_advertised(ports[0], advertised), what="the address is advertised")
                if number == 0:
                    await broker.connect()
                first.kill()
                await eventually(lambda: not broker.connected)
                first.start()
                await eventually(lambda number=number: broker.nc.stats["reconnects"] == number + 1)
        finally:
            await broker.close()
            first.kill()
            second.kill()
        assert not taken
