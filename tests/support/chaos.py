"""Kills and freezes everything at random, by a seed, and brings it back."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.support.cluster import Cluster, Node
from tests.support.rows import freeze, thaw
from tests.support.services import Service, System


async def _at_once() -> None:
    """It needs no time to be whole again."""


@dataclass(frozen=True)
class Target:
    """Something that can be hit. `weight`: how often, compared with the others.

    group: of the targets of one group, one is hit at a time, and the next one after `whole`: when all of what they are
    together has recovered.
    """

    name: str
    weight: float
    pid: Callable[[], int | None]
    kill: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]
    group: str = ""
    whole: Callable[[], Awaitable[None]] = _at_once


def service_target(system: System, name: str, weight: float, port: int | None = None) -> Target:
    """A replica of a service, started now."""
    current: list[Service] = [system.start(name, port=port)]

    async def kill() -> None:
        await asyncio.to_thread(current[0].kill)

    async def start() -> None:
        current[0] = system.start(name, port=port)

    return Target(name, weight, lambda: current[0].pid if current[0].running else None, kill, start)


def server_target(server: Any, name: str, weight: float, pid: Callable[[], int | None]) -> Target:
    """NATS or Postgres."""

    async def kill() -> None:
        await asyncio.to_thread(server.kill)

    async def start() -> None:
        await asyncio.to_thread(server.start)

    return Target(name, weight, pid, kill, start)


def node_targets(cluster: Cluster, weight: float) -> list[Target]:
    """The nodes of a NATS cluster, of which a majority always stays: the promise is about one at a time."""

    def target(node: Node) -> Target:
        async def kill() -> None:
            await asyncio.to_thread(node.kill)

        async def start() -> None:
            node.start()

        async def whole() -> None:
            await cluster.whole(120)

        return Target(node.name, weight, lambda: node.child.pid, kill, start, "nats", whole)

    return [target(node) for node in cluster.nodes]


class Storm:
    """`blow` hits targets for some seconds; afterwards all of them run. `diary`: what happened when."""

    def __init__(self, targets: list[Target], seed: int) -> None:
        self.diary: list[str] = []
        self.kills = 0
        self.freezes = 0
        self._targets = targets
        self._random = random.Random(seed)
        self._busy: set[int | str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()

    async def blow(self, seconds: float) -> None:
        """The sequence of what is hit, how and for how long follows from the seed alone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self._random.uniform(0.2, 0.9))
            index = self._random.choices(range(len(self._targets)), [one.weight for one in self._targets])[0]
            kill = self._random.random() < 0.55
            pause = self._random.uniform(0, 1.5) if kill else self._random.uniform(0.2, 4)
            if self._place(index) in self._busy:
                continue
            self._busy.add(self._place(index))
            task = asyncio.create_task(self._hit(index, kill, pause))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.gather(*self._tasks)

    def note(self, text: str) -> None:
        """With the seconds since the start."""
        self.diary.append(f"{time.monotonic() - self._began:6.1f} {text}")

    async def _hit(self, index: int, kill: bool, pause: float) -> None:
        target = self._targets[index]
        name = f"{target.name} ({index})"
        try:
            pid = target.pid()
            if kill or pid is None:
                self.kills += 1
                self.note(f"kill {name}, start it after {pause:.1f} s")
                await target.kill()
                await asyncio.sleep(pause)
                await target.start()
            else:
                self.freezes += 1
                self.note(f"freeze {name} for {pause:.1f} s")
                freeze(pid)
                try:
                    await asyncio.sleep(pause)
                finally:
                    thaw(pid)
            self.note(f"{name} goes on")
            await target.whole()
        finally:
            self._busy.discard(self._place(index))

    def _place(self, index: int) -> int | str:
        return self._targets[index].group or index

    async def calm(self) -> None:
        """Whatever ended by itself is started."""
        for index, target in enumerate(self._targets):
            if target.pid() is None:
                self.note(f"{target.name} ({index}) had ended by itself")
                with suppress(OSError):
                    await target.start()
