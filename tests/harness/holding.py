"""Holds the leader of a stream back, so that it applies what is committed later than other nodes deliver it.

It stays the leader all the while: an election begins after 4 s of silence at the soonest.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from tests.harness.cluster import Cluster
from tests.harness.watching import JOBS, Observer

Hold = Callable[[Cluster, random.Random], Awaitable[None]]


async def freeze(cluster: Cluster, chance: random.Random) -> None:
    """The leader stands still for 0.3 to 2 s."""
    leader = await cluster.leader(JOBS)
    seconds = chance.uniform(0.3, 2.0)
    leader.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        leader.thaw()


async def starve(cluster: Cluster, chance: random.Random) -> None:
    """The leader gets a twentieth of a core for 2 s."""
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


async def delay_routes(cluster: Cluster, chance: random.Random) -> None:
    """What the leader and the others say to each other arrives 0.05 to 0.4 s later, for 2 s. Needs `slow_routes`."""
    leader = await cluster.leader(JOBS)
    cluster.delay(leader, chance.uniform(0.05, 0.4))
    try:
        await asyncio.sleep(2)
    finally:
        cluster.delay(leader, 0)


async def slow_disk(cluster: Cluster, _: random.Random) -> None:
    """The first node leads for 2 s and more: for a cluster in which it alone flushes each message."""
    if await cluster.leader(JOBS) is not cluster.nodes[0]:
        async with Observer(cluster.url) as seen:
            await seen.api(f"STREAM.LEADER.STEPDOWN.{JOBS}", {"placement": {"preferred": cluster.nodes[0].name}})
    await asyncio.sleep(2)
