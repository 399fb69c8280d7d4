"""Kills and freezes processes at random, with a seed, and starts them again."""

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
    """Return at once: the default `whole` of a target that needs no recovery."""


@dataclass(frozen=True)
class Target:
    """A process that can be killed or frozen.

    weight: how often it is hit, relative to the other targets. group: only one target of a group is hit at a time, and
    the next one only after `whole` has returned: when the whole group has recovered.
    """

    name: str
    weight: float
    pid: Callable[[], int | None]
    kill: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]
    group: str = ""
    whole: Callable[[], Awaitable[None]] = _at_once


def service_target(system: System, name: str, weight: float, port: int | None = None) -> Target:
    """Start a replica of a service, and return it as a target."""
    current: list[Service] = [system.start(name, port=port)]

    async def kill() -> None:
        await asyncio.to_thread(current[0].kill)

    async def start() -> None:
        current[0] = system.start(name, port=port)

    return Target(name, weight, lambda: current[0].pid if current[0].running else None, kill, start)


def server_target(server: Any, name: str, weight: float, pid: Callable[[], int | None]) -> Target:
    """Return a running NATS or Postgres server as a target."""

    async def kill() -> None:
        await asyncio.to_thread(server.kill)

    async def start() -> None:
        await asyncio.to_thread(server.start)

    return Target(name, weight, pid, kill, start)


def node_targets(cluster: Cluster, weight: float) -> list[Target]:
    """Return the nodes of a NATS cluster as targets of one group.

    Only one node is hit at a time, because the system's guarantees hold only while a majority of the nodes runs.
    """

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
    """Hits random targets. After `blow` and `calm`, all targets run. `diary` has the actions with their times."""

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
        """Hit targets for this many seconds, and wait until they are started or thawed again.

        The seed alone determines the sequence of targets, whether each is killed or frozen, and for how long.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self._random.uniform(0.2, 0.9))
            index = self._random.choices(range(len(self._targets)), [one.weight for one in self._targets])[0]
            kill = self._random.random() < 0.55
            seconds_down = self._random.uniform(0, 1.5) if kill else self._random.uniform(0.2, 4)
            if self._group_of(index) in self._busy:
                continue
            self._busy.add(self._group_of(index))
            task = asyncio.create_task(self._hit(index, kill, seconds_down))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.gather(*self._tasks)

    def note(self, text: str) -> None:
        """Add a line to the diary, with the seconds since the start."""
        self.diary.append(f"{time.monotonic() - self._began:6.1f} {text}")

    async def _hit(self, index: int, kill: bool, seconds_down: float) -> None:
        target = self._targets[index]
        name = f"{target.name} ({index})"
        try:
            pid = target.pid()
            if kill or pid is None:
                self.kills += 1
                self.note(f"kill {name}, start it after {seconds_down:.1f} s")
                await target.kill()
                await asyncio.sleep(seconds_down)
                await target.start()
            else:
                self.freezes += 1
                self.note(f"freeze {name} for {seconds_down:.1f} s")
                freeze(pid)
                try:
                    await asyncio.sleep(seconds_down)
                finally:
                    thaw(pid)
            self.note(f"{name} runs again")
            await target.whole()
        finally:
            self._busy.discard(self._group_of(index))

    def _group_of(self, index: int) -> int | str:
        return self._targets[index].group or index

    async def calm(self) -> None:
        """Start every target that has ended by itself."""
        for index, target in enumerate(self._targets):
            if target.pid() is None:
                self.note(f"{target.name} ({index}) had ended by itself")
                with suppress(OSError):
                    await target.start()
