"""Holds the leader of HEIMDEX_JOBS back, so that it applies what is committed later than other nodes deliver it.

It stays the leader all the while: an election begins after 4 s of silence at the soonest.
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
    """A way to do so. `back`: once, for a moment. The others say what of the cluster it takes, see `Cluster`."""

    name: str
    back: Callable[[Cluster, random.Random], Awaitable[None]]
    sync_interval: str | tuple[str, ...] = "always"
    slow_routes: bool = False
    nice: int = 0

    def cluster(self, folder: Path, version: str = "") -> Cluster:
        """One that it can be done to; not started yet."""
        return Cluster(folder / "cluster", self.sync_interval, version, self.slow_routes, self.nice)

    def neighbours(self, folder: Path, seconds: float) -> Spinners:
        """What must run beside it: a node of lower priority is slow only where others want the cores."""
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


#: It stands still for 0.3 to 2 s.
FROZEN = Hold("frozen", _freeze)
#: It gets a twentieth of a core for 2 s.
STARVED = Hold("starved", _starve)
#: What it and the others say to each other arrives 0.05 to 0.3 s later, for 2 s.
FAR = Hold("far", _delay_routes, slow_routes=True)
#: It alone flushes each message to the disk.
SLOW_DISK = Hold("slow-disk", _let_the_first_lead, sync_interval=("always", "2m", "2m"))
#: Everything else on the machine goes before it.
LOW_PRIORITY = Hold("low-priority", _let_the_first_lead, nice=10)

EVERY_HOLD = (FROZEN, STARVED, FAR, SLOW_DISK, LOW_PRIORITY)
