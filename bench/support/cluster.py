"""A cluster of three nats-servers on this machine, as in compose.cluster.yaml."""

from pathlib import Path

from heimdex_cli.embedded import EmbeddedNats
from heimdex_cli.embedded.ports import free_port

SIZE = 3


class Node(EmbeddedNats):
    """One server of the cluster.

    routes: the ports on which the servers listen for each other; that of this server is `routes[number]`.
    """

    def __init__(self, directory: Path, sync_interval: str, number: int, routes: list[int]) -> None:
        super().__init__(directory / f"nats-{number + 1}", sync_interval=sync_interval)
        self._route_port, self._routes = routes[number], routes

    def _config(self) -> str:
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in self._routes)
        address = f"127.0.0.1:{self._route_port}"
        cluster = f"cluster {{ name: bench, listen: {address}, routes: [{routes}], no_advertise: true }}\n"
        return super()._config() + cluster


class NatsCluster:
    """Three servers with the interface of one EmbeddedNats. `url` has the addresses of all three."""

    def __init__(self, directory: Path, sync_interval: str) -> None:
        routes: list[int] = []
        while len(routes) < SIZE:
            port = free_port()
            if port not in routes:
                routes.append(port)
        self._nodes = [Node(directory, sync_interval, number, routes) for number in range(SIZE)]

    @property
    def url(self) -> str:
        """The URLs of the servers, comma-separated as in HEIMDEX_NATS_URL."""
        return ",".join(node.url for node in self._nodes)

    @property
    def pids(self) -> list[int]:
        """The process ids of the servers that run."""
        return [node.pid for node in self._nodes if node.pid]

    def start(self) -> None:
        """Start all servers. JetStream may not have a leader yet on return; the services wait for that."""
        for node in self._nodes:
            node.start()

    def stop(self) -> None:
        """Stop all servers, one after the other."""
        for node in self._nodes:
            node.stop()
