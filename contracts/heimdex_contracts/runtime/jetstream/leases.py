"""Keeps deliveries alive while they are held, however long: says in-progress several times per ack wait."""

import asyncio
from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.topology import Topology

TIMES_PER_ACK_WAIT: Final = 4


class Leases:
    """The reply subjects of the deliveries that this process holds."""

    def __init__(self, broker: Broker, topology: Topology, ack_wait_seconds: float) -> None:
        self._broker = broker
        self._topology = topology
        self._pause = ack_wait_seconds / TIMES_PER_ACK_WAIT
        self._held: set[str] = set()
        topology.held = self._held
        self._task: asyncio.Task[None] | None = None

    def add(self, reply: str) -> None:
        """Renew this delivery from now on."""
        self._held.add(reply)

    def remove(self, reply: str) -> None:
        """It is settled, or about to be: a renewal after a nak would undo its delay."""
        self._held.discard(reply)

    def start(self) -> None:
        """Renew in the background."""
        self._task = asyncio.create_task(self._run())

    def renew_all(self) -> None:
        """At once: also after a reconnection, when the streams are known again."""
        for reply in self._held:
            if not self._topology.is_current(reply):
                continue
            try:
                self._broker.send(reply, b"+WPI")
            except BrokerUnavailable:
                return  # the reconnection renews them

    async def stop(self) -> None:
        """Renew nothing more."""
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            self.renew_all()
