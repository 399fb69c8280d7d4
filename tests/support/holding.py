"""Slows down the leader of HEIMDEX_JOBS, so that it applies a committed message later than other nodes deliver it.

It stays the leader: an election begins only after 4 s of silence or more.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.spinning import Spinners
from tests.support.watching import JOBS, Observer


@dataclass(frozen=True)
class Hold:
    """A way to slow down the leader. `back` does it once, for a moment.

    The other fields are the arguments of `Cluster` that it needs.
    """

    name: str
    back: Callable[[Cluster, random.Random], Awaitable[None]]
    sync_interval: str | tuple[str, ...] = "always"
    slow_routes: bool = False
    nice: int = 0

    def cluster(self, folder: Path, version: str = "") -> Cluster:
        """Create a cluster to which it can be applied, without starting it."""
        return Cluster(folder / "cluster", self.sync_interval, version, self.slow_routes, self.nice)

    def neighbours(self, folder: Path, seconds: float) -> Spinners:
        """Return the processes that must run at the same time.

        A node of lower priority is slow only while other processes need the cores. The other ways need none.
        """
        return Spinners(folder, seconds, count=None if self.nice else 0)


async def _freeze(cluster: Cluster, chance: random.Random) -> None:
    leader = await cluster.leader(JOBS)
    seconds = chance.uniform(0.3, 2.0)
    leader.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        leader.thaw()


async def _starve(cluster: Cluster, chance: random.Random) -> None:
    leader = await cluster.leader(JOBS)
    end = time.monotonic() + 2
    try:
        while time.monotonic() < end:
            leader.freeze()
            await asyncio.sleep(chance.uniform(0.02, 0.1))
            leader.thaw()
            await asyncio.sleep(0.004)
    finally:
        leader.thaw()


async def _delay_routes(cluster: Cluster, chance: random.Random) -> None:
    leader = await cluster.leader(JOBS)
    cluster.delay(leader, chance.uniform(0.05, 0.3))
    try:
        await asyncio.sleep(2)
    finally:
        cluster.delay(leader, 0)


async def _let_the_first_lead(cluster: Cluster, _: random.Random) -> None:
    if await cluster.leader(JOBS) is not cluster.nodes[0]:
        async with Observer(cluster.url) as seen:
            await seen.api(f"STREAM.LEADER.STEPDOWN.{JOBS}", {"placement": {"preferred": cluster.nodes[0].name}})
    await asyncio.sleep(2)


#: The leader is frozen for 0.3 to 2 s.
FROZEN = Hold("frozen", _freeze)
#: The leader gets a twentieth of a core for 2 s.
STARVED = Hold("starved", _starve)
#: Traffic between the leader and the other nodes is delayed by 0.05 to 0.3 s, for 2 s.
FAR = Hold("far", _delay_routes, slow_routes=True)
#: Only the leader syncs each message to the disk.
SLOW_DISK = Hold("slow-disk", _let_the_first_lead, sync_interval=("always", "2m", "2m"))
#: The leader's process has a lower priority than all others.
LOW_PRIORITY = Hold("low-priority", _let_the_first_lead, nice=10)

EVERY_HOLD = (FROZEN, STARVED, FAR, SLOW_DISK, LOW_PRIORITY)
