"""Three nats-servers on this machine that are one cluster: killed, stopped and started one at a time."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from heimdex_cli.embedded.ports import free_port
from heimdex_cli.embedded.processes import Child
from tests.harness.waiting import eventually

SIZE = 3


class Node:
    """One server of the cluster; its address and its store survive `stop`, `kill` and `start`."""

    def __init__(self, folder: Path, number: int, port: int, routes: list[int]) -> None:
        self.name = f"node-{number}"
        self.port = port
        self.url = f"nats://127.0.0.1:{port}"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        others = ", ".join(f"nats-route://127.0.0.1:{route}" for route in routes)
        config = self.folder / "nats.conf"
        config.write_text(
            f"server_name: {self.name}\n"
            f"listen: 127.0.0.1:{port}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.folder))} }}\n"
            f"cluster {{ name: tests, listen: 127.0.0.1:{routes[number]}, routes: [{others}], no_advertise: true }}\n"
            "accounts { $SYS { users: [{ user: system, password: system }] }\n"
            "           TESTS { jetstream: enabled, users: [{ user: tests, password: tests }] } }\n"
            "no_auth_user: tests\n"
        )
        self.child = Child(
            [Path(sys.executable).with_name("nats-server"), "-c", config],
            log_path=self.folder / "nats.log",
            stop_seconds=15,
            rank=1,
        )

    def start(self) -> None:
        """Start it, and return at once."""
        self.child.start()

    def stop(self) -> None:
        """SIGTERM: it hands its leaderships over first."""
        self.child.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def wipe(self) -> None:
        """While it is stopped: remove all that it has stored."""
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)


class Cluster:
    """`url` names all its servers, as HEIMDEX_NATS_URL does."""

    def __init__(self, folder: Path) -> None:
        ports = _distinct_ports(2 * SIZE)
        routes = ports[SIZE:]
        self.nodes = [Node(folder, number, ports[number], routes) for number in range(SIZE)]

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    async def start(self) -> None:
        """Start all, and return when JetStream has a leader."""
        for node in self.nodes:
            node.start()
        await self.whole()

    async def whole(self, timeout: float = 60) -> None:
        """Every server runs, and each stream has all its replicas, up to date, and so has each consumer."""
        await eventually(self._is_whole, timeout, "the cluster is whole")

    def end(self) -> None:
        """SIGKILL to all of them."""
        for node in self.nodes:
            node.kill()

    async def leader(self, stream: str) -> Node:
        """Who leads this stream now."""

        async def ask() -> Node | None:
            streams = await self._streams()
            name = (streams or {}).get(stream, {}).get("cluster", {}).get("leader")
            return next((node for node in self.nodes if node.name == name), None)

        return await eventually(ask, what=f"{stream} has a leader")

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
                await nc.connect([node.url for node in self.nodes if node.child.pid], allow_reconnect=False)
                reply = await nc.request("$JS.API.STREAM.LIST", b"", timeout=3)
            answer = msgspec.json.decode(reply.data)
            if "error" in answer or answer.get("missing"):
                return None
            return {stream["config"]["name"]: stream for stream in answer["streams"] or []}
        except Exception:  # whatever a client meets while an election is on
            return None
        finally:
            await nc.close()


def _distinct_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        if port not in found:
            found.append(port)
    return found
