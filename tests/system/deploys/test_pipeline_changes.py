"""A deploy changes the pipelines while jobs run: every job ends as the route of its submission says.

The old and the new pipelines run side by side on this release's code, in both orders of the rollout.
"""

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.support.api import Api
from tests.support.pipelines.deployed import RUNS, declared, open_gate, runs
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

#: A worker that does not know a job returns it for 5 to 120 s, and a redelivery may meet such a worker again: of two
#: workers, each time with one chance in two. Of 40 jobs, one in a hundred runs needs longer than this.
WITHIN_SECONDS = 1000.0

Types = Mapping[str, tuple[str, ...]]


class Change(NamedTuple):
    """The job types of a deploy before and after it, and the former names of stages after it."""

    before: Types
    after: Types
    formerly: Mapping[str, str] = {}  # never changed
    backoff: tuple[float, ...] = (0.1, 0.1)


CHANGES = {
    "stage added at the end": Change({"film": ("cut", "mix")}, {"film": ("cut", "mix", "print")}),
    "stage added in the middle": Change({"film": ("cut", "mix")}, {"film": ("cut", "grade", "mix")}),
    "stage removed": Change({"film": ("cut", "grade", "mix")}, {"film": ("cut", "mix")}),
    "stage renamed": Change({"film": ("cut", "mix")}, {"film": ("trim", "mix")}, {"trim": "cut"}),
    "stages reordered": Change({"film": ("cut", "grade", "mix")}, {"film": ("grade", "cut", "mix")}),
    "type added": Change({"film": ("cut", "mix")}, {"film": ("cut", "mix"), "song": ("mix",)}),
    "type removed": Change({"film": ("cut", "mix"), "song": ("mix",)}, {"film": ("cut", "mix")}),
    "retry policy changed": Change({"failing": ("cut", "mix")}, {"failing": ("cut", "mix")}, {}, (0.2,)),
}


class Deploy:
    """The processes of one deploy."""

    def __init__(self, system: System, env: dict[str, str], types: Types) -> None:
        self._system = system
        self._env = env
        self.types = types
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def start_gateway(self) -> None:
        self._system.start("gateway", env=self._env, port=self._port)

    def start_store(self) -> None:
        self._system.start("status-store", env=self._env)

    def start_workers(self) -> None:
        for stage in dict.fromkeys(stage for stages in self.types.values() for stage in stages):
            self._system.start(stage, env=self._env)

    async def submit(self, jobs: int) -> dict[str, tuple[str, ...]]:
        """Submit this many jobs of each type. Returns the route of each job by its id."""
        async with Api(self.url) as api:
            return {await api.submit(name): route for name, route in self.types.items() for _ in range(jobs)}


async def check_change(system: System, nats: NatsServer, scratch: Path, change: Change, first: str, jobs: int) -> None:
    system.env[RUNS] = str(scratch / "runs")
    old = Deploy(system, declared(change.before), change.before)
    new = Deploy(system, declared(change.after, change.formerly, change.backoff), change.after)
    old.start_store()
    old.start_gateway()
    old.start_workers()
    await system.ready()
    async with Observer(nats.url) as seen:
        routes = await old.submit(jobs)
        for part in ("workers", "gateway") if first == "workers" else ("gateway", "workers"):
            if part == "workers":
                new.start_workers()
            else:
                new.start_gateway()
                new.start_store()
            await system.ready()
            routes |= await old.submit(jobs)
            if part == "gateway":
                routes |= await new.submit(jobs)
        routes |= await old.submit(jobs) | await new.submit(jobs)
        async with Api(new.url) as api:
            await asyncio.gather(*(api.wait_until(job_id, "completed", timeout=WITHIN_SECONDS) for job_id in routes))
        await eventually(seen.empty, timeout=WITHIN_SECONDS)
        unusable = await seen.api("STREAM.INFO.HEIMDEX_UNUSABLE")
        assert unusable["state"]["messages"] == 0
    started: dict[str, list[str]] = {}
    for job_id, stage, attempt in runs(scratch):
        if attempt == 1:
            started.setdefault(job_id, []).append(stage)
    former = {name: stage for stage, name in change.formerly.items()}
    for job_id, route in routes.items():
        assert started[job_id] == list(route), (job_id, former)


@pytest.mark.allows("refused", "topology")
@pytest.mark.parametrize("change", ["stage added at the end", "stage renamed"])
async def test_jobs_of_both_deploys_end_along_their_own_routes(
    system: System, nats: NatsServer, scratch: Path, change: str
) -> None:
    await check_change(system, nats, scratch, CHANGES[change], "gateway", 2)


@pytest.mark.full
@pytest.mark.timeout(WITHIN_SECONDS + 300)
@pytest.mark.allows("refused", "topology")
@pytest.mark.parametrize("first", ["workers", "gateway"])
@pytest.mark.parametrize("change", CHANGES)
async def test_every_kind_of_change_in_both_orders_of_the_rollout(
    system: System, nats: NatsServer, scratch: Path, change: str, first: str
) -> None:
    await check_change(system, nats, scratch, CHANGES[change], first, 10)


@pytest.mark.allows("refused")
async def test_a_job_of_an_unknown_type_waits_for_its_worker_and_delays_no_other(
    system: System, nats: NatsServer, scratch: Path
) -> None:
    system.env[RUNS] = str(scratch / "runs")
    old = Deploy(system, declared({"film": ("mix",)}), {"film": ("mix",)})
    new = Deploy(system, declared({"film": ("mix",), "song": ("mix",)}), {"song": ("mix",)})
    old.start_store()
    new.start_gateway()
    old.start_workers()
    await system.ready()
    async with Observer(nats.url, "heimdex.refusals.>") as seen, Api(new.url) as api:
        song = await api.submit("song")
        (refusal,) = await eventually(lambda: seen.payloads("heimdex.refusals", song)[:1] or None) or [{}]
        assert (refusal["type"], refusal["stage"], refusal["step"]) == ("song", "mix", 0)
        film = await api.submit("film")
        await api.wait_until(film, "completed")
        assert (await api.get(song))["status"] == "pending"
        await system["mix"].terminate()
        new.start_workers()
        await api.wait_until(song, "completed")
        await eventually(seen.empty)
    assert runs(scratch) == [(film, "mix", 1), (song, "mix", 1)]
    (entry,) = system.logged("unknown_work")
    assert (entry["type"], entry["stage"], uuid.UUID(entry["job_id"])) == ("song", "mix", uuid.UUID(song))


@pytest.mark.allows("repeated")
async def test_a_worker_full_of_jobs_of_a_former_name_leaves_the_others_to_a_free_worker(
    system: System, nats: NatsServer, scratch: Path
) -> None:
    system.env |= {RUNS: str(scratch / "runs"), "HEIMDEX_STAGE_CONCURRENCY": "1"}
    old_types, types = {"gated": ("cut",), "film": ("cut",)}, {"gated": ("trim",), "film": ("trim",)}
    old = Deploy(system, declared(old_types), old_types)
    new = Deploy(system, declared(types, {"trim": "cut"}), types)
    new.start_store()
    for deploy in (old, new):
        deploy.start_gateway()
    new.start_workers()
    await system.ready()
    async with Observer(nats.url) as seen, Api(old.url) as api:
        gated = await api.submit("gated")
        await eventually(lambda: runs(scratch) == [(gated, "cut", 1)], what="the worker is full")
        async with Api(new.url) as other:
            film = await other.submit("film")

        async def is_delivered() -> bool:
            return bool((await seen.api("CONSUMER.INFO.HEIMDEX_JOBS.trim"))["num_ack_pending"] == 1)

        await eventually(is_delivered, what="the worker is sent a job of the other queue too")
        new.start_workers()
        await api.wait_until(film, "completed")
        assert runs(scratch) == [(gated, "cut", 1), (film, "trim", 1)]
        open_gate(scratch)
        await api.wait_until(gated, "completed")
        await eventually(seen.empty)
