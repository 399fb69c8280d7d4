"""Three nats-servers on this machine that are one cluster, as compose.cluster.yaml has them on one."""

from pathlib import Path

from heimdex_cli.embedded import EmbeddedNats
from heimdex_cli.embedded.ports import free_port

SIZE = 3


class Node(EmbeddedNats):
    """One of them. routes: the ports that all of them listen on for each other, its own is the one at `number`."""

    def __init__(self, directory: Path, sync_interval: str, number: int, routes: list[int]) -> None:
        super().__init__(directory / f"nats-{number + 1}", sync_interval=sync_interval)
        self._own, self._routes = routes[number], routes

    def _config(self) -> str:
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in self._routes)
        cluster = f"cluster {{ name: bench, listen: 127.0.0.1:{self._own}, routes: [{routes}], no_advertise: true }}\n"
        return super()._config() + cluster


class NatsCluster:
    """In the place of one EmbeddedNats. `url` names all three."""

    def __init__(self, directory: Path, sync_interval: str) -> None:
        routes: list[int] = []
        while len(routes) < SIZE:
            port = free_port()
            if port not in routes:
                routes.append(port)
        self._nodes = [Node(directory, sync_interval, number, routes) for number in range(SIZE)]

    @property
    def url(self) -> str:
        """Comma-separated, as in HEIMDEX_NATS_URL."""
        return ",".join(node.url for node in self._nodes)

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [node.pid for node in self._nodes if node.pid]

    def start(self) -> None:
        """Start all of them; the services wait until JetStream has a leader."""
        for node in self._nodes:
            node.start()

    def stop(self) -> None:
        """End all of them."""
        for node in self._nodes:
            node.stop()
