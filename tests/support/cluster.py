"""A cluster of three nats-servers on this machine, which can be killed, frozen, stopped and started one by one."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from tests.support.links import RouteLink
from tests.support.nats_versions import nats_server
from tests.support.waiting import eventually

SIZE = 3


class Node:
    """One server of the cluster. Its address and its store survive `stop`, `kill` and `start`.

    ports: three ports per node: for clients, for routes, and the port at which the other nodes reach its routes.
    """

    def __init__(
        self, folder: Path, number: int, ports: list[tuple[int, int, int]], sync_interval: str, version: str, nice: int
    ) -> None:
        self.name = f"node-{number}"
        self.port, routes, advertised = ports[number]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        others = ", ".join(f"nats-route://127.0.0.1:{other[2]}" for other in ports if other != ports[number])
        config = self.folder / "nats.conf"
        config.write_text(
            f"server_name: {self.name}\n"
            f"listen: 127.0.0.1:{self.port}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.folder))}, sync_interval: {sync_interval} }}\n"
            f"cluster {{ name: tests, listen: 127.0.0.1:{routes}, advertise: '127.0.0.1:{advertised}'\n"
            f"          routes: [{others}], no_advertise: true }}\n"
            "accounts { $SYS { users: [{ user: system, password: system }] }\n"
            "           TESTS { jetstream: enabled, users: [{ user: tests, password: tests }] } }\n"
            "no_auth_user: tests\n"
        )
        self.child = ChildProcess(
            [*(["nice", "-n", str(nice)] if nice else []), nats_server(version), "-c", config],
            log_path=self.folder / "nats.log",
            stop_seconds=15,
            rank=1,
        )

    def start(self) -> None:
        """Start the server, and return without waiting until it is ready."""
        self.child.start()

    def stop(self) -> None:
        """Stop the server with SIGTERM: it transfers its leaderships first."""
        self.child.stop()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would end it."""
        self.child.kill()

    def freeze(self) -> None:
        """Stop the server with SIGSTOP: its connections stay open, and it sends nothing.

        It stays the leader of its streams for at least 4 s.
        """
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server continue, with SIGCONT."""
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        if pid := self.child.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wipe(self) -> None:
        """Remove everything that the server has stored. The server must be stopped."""
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)


class Cluster:
    """A cluster of three servers. `url` has the addresses of all of them, as HEIMDEX_NATS_URL does.

    sync_interval: that of all nodes, by default as in compose.cluster.yaml, or one per node. version: the version of
    nats-server; "" means the installed one. slow_routes: routes go through a proxy of the test, so that `delay` can
    slow them down. nice: the niceness of the first node's process; 19 is the lowest priority.
    """

    def __init__(
        self,
        folder: Path,
        sync_interval: str | Sequence[str] = "always",
        version: str = "",
        slow_routes: bool = False,
        nice: int = 0,
    ) -> None:
        chosen = _distinct_ports(3 * SIZE)
        by_node = list(zip(chosen[:SIZE], chosen[SIZE : 2 * SIZE], chosen[2 * SIZE :], strict=True))
        ports = by_node if slow_routes else [(port, routes, routes) for port, routes, _ in by_node]
        intervals = [sync_interval] * SIZE if isinstance(sync_interval, str) else sync_interval
        self.nodes = [
            Node(folder, number, ports, intervals[number], version, 0 if number else nice) for number in range(SIZE)
        ]
        self._delays: dict[str, float] = {}
        self._links = [
            RouteLink(node.name, advertised, routes, self._delays)
            for node, (_, routes, advertised) in zip(self.nodes, ports, strict=True)
            if slow_routes
        ]

    def delay(self, node: Node, seconds: float) -> None:
        """Delay all traffic between this node and the others by this many seconds from now on. Needs `slow_routes`."""
        assert self._links, "this cluster was created without slow_routes"
        self._delays[node.name] = seconds

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    async def start(self) -> None:
        """Start all nodes, and wait until the cluster is whole."""
        for link in self._links:
            await link.start()
        for node in self.nodes:
            node.start()
        await self.whole()

    async def whole(self, timeout: float = 60) -> None:
        """Wait until every server runs, and each stream has a leader and all its replicas, which are up to date."""
        await eventually(self._is_whole, timeout, "the cluster is whole")

    def end(self) -> None:
        """Kill all nodes with SIGKILL, and close the links between them."""
        for node in self.nodes:
            node.kill()
        for link in self._links:
            link.close()

    async def leader(self, stream: str) -> Node:
        """Return the node that leads this stream now; waits until there is one."""

        async def find() -> Node | None:
            streams = await self._streams()
            name = (streams or {}).get(stream, {}).get("cluster", {}).get("leader")
            return next((node for node in self.nodes if node.name == name), None)

        return await eventually(find, what=f"{stream} has a leader")

    async def _is_whole(self) -> bool:
        streams = await self._streams()
        if streams is None or not all(node.child.pid for node in self.nodes):
            return False
        for stream in streams.values():
            state = stream.get("cluster", {})
            peers = state.get("replicas", [])
            if stream["config"]["num_replicas"] != 1 + len(peers) or not state.get("leader"):
                return False
            if any(not peer["current"] or peer.get("offline") for peer in peers):
                return False
        return True

    async def _streams(self) -> dict[str, Any] | None:
        nc = Client()
        try:
            async with asyncio.timeout(5):
                urls = [node.url for node in self.nodes if node.child.pid]
                await nc.connect(urls, allow_reconnect=False, error_cb=_ignore)
                reply = await nc.request("$JS.API.STREAM.LIST", b"", timeout=3)
            answer = msgspec.json.decode(reply.data)
            if "error" in answer or answer.get("missing"):
                return None
            return {stream["config"]["name"]: stream for stream in answer["streams"] or []}
        except Exception:  # a client may get any error during an election
            return None
        finally:
            await nc.close()


async def _ignore(_: Exception) -> None:
    """Ignore the error: a node that is starting refuses connections, and nats-py would log each refusal."""


def _distinct_ports(count: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < count:
        port = free_port()
        if port not in ports:
            ports.append(port)
    return ports
