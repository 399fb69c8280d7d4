"""A rolling deployment from the previous release (installed by `make test-upgrade`) to this one, and back."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.load import Load
from tests.support.services import MOCK_STAGES, System, clean_environment
from tests.support.waiting import eventually
from tests.support.watching import Observer

BEFORE = Path(os.environ.get("HEIMDEX_TEST_BEFORE", "")).absolute()
ORDERS = {
    "workers first": (*MOCK_STAGES, "status-store", "gateway"),
    "gateway first": ("gateway", *MOCK_STAGES, "status-store"),
    "gateway last": ("status-store", *reversed(MOCK_STAGES), "gateway"),
}
BODIES: list[dict[str, Any]] = [
    {"type": "mock_process"},
    {"type": "mock_process", "fail_at_stage": "indexing"},
    {"type": "mock_process", "delay_seconds": 2},
]
STAGES = ("probing", "scaling")
#: The declaration for the release before, which has neither params nor outputs, and the one for this release.
OLD_FILMS = """
from heimdex_contracts.pipelines import Pipeline, Stage

PIPELINES = [Pipeline("film", (Stage("probing", 1, "films:run"), Stage("scaling", 1, "films:run")))]

def run(ctx):
    pass
"""
NEW_FILMS = """
import msgspec
from heimdex import Pipeline, Stage

class Film(msgspec.Struct, forbid_unknown_fields=True):
    source: str = "none"

class Probed(msgspec.Struct):
    source: str

def probe(params: Film) -> Probed:
    return Probed(params.source)

def scale(params: Film, probing: Probed | None = None) -> dict[str, str | None]:
    return {"source": params.source, "probed": probing and probing.source}

PIPELINES = [
    Pipeline(
        "film",
        (Stage("probing", 1, "films:probe", output=Probed), Stage("scaling", 1, "films:scale")),
        params=Film,
    )
]
"""


class Films:
    """The processes of both releases with their declarations of the type `film`.

    Each method starts a part of one release, waits until it is ready, and ends this part of the other release.
    """

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._folder = folder
        for name, text in (("old", OLD_FILMS), ("new", NEW_FILMS)):
            (folder / name).mkdir()
            (folder / name / "films.py").write_text(text)

    async def replace(self, release: str, *names: str) -> None:
        for name in names:
            before = [each for each in self._system.services if each.name == name and each.running]
            if name == "gateway":  # its port is taken until it has ended
                for each in before:
                    assert await each.terminate() == 0
            path = os.pathsep.join([str(self._folder / release), clean_environment()["PYTHONPATH"]])
            env: Mapping[str, str] = {"HEIMDEX_PIPELINES": "films", "PYTHONPATH": path}
            await self._system.start(name, env=env, scripts=BEFORE if release == "old" else None).wait_log("ready")
            for each in before:
                if each.running:
                    assert await each.terminate() == 0
        await self._system.ready()


def expected(source: str) -> dict[str, str]:
    return {"source": source, "probed": source}


@pytest.mark.upgrade
@pytest.mark.allows("topology")  # a release may add a stream
@pytest.mark.parametrize("order", [(*STAGES, "status-store"), ("status-store", *STAGES)], ids=["workers", "store"])
async def test_jobs_get_params_and_outputs_when_the_workers_are_upgraded_before_the_gateway(
    system: System, nats: Any, tmp_path: Path, order: tuple[str, ...]
) -> None:
    films = Films(system, tmp_path)
    await films.replace("old", *STAGES, "status-store", "gateway")
    async with Observer(nats.url) as seen, Api(system.url) as api:
        before = await api.wait_until(await api.submit("film"), "completed")
        assert "output" not in before["result"]
        for name in order:
            mixed = await api.submit("film")
            await films.replace("new", name)
            await api.wait_until(mixed, "completed")
        plain_id = await api.submit("film")
        plain = await api.wait_until(plain_id, "completed")
        assert plain["result"]["output"] == expected("none")
        await films.replace("new", "gateway")
        typed = await api.wait_until(await api.submit("film", params={"source": "a"}), "completed")
        assert typed["result"]["output"] == expected("a")
        assert (await api.get(plain_id))["result"] == plain["result"]
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
        assert await seen.count("HEIMDEX_UNUSABLE") == 0


@pytest.mark.upgrade
@pytest.mark.allows("topology")  # a release may add a stream
async def test_a_job_whose_first_stage_ran_before_outputs_continues_with_the_defaults(
    system: System, nats: Any, tmp_path: Path
) -> None:
    films = Films(system, tmp_path)
    await films.replace("old", "probing", "status-store", "gateway")
    async with Observer(nats.url) as seen, Api(system.url) as api:
        job = await api.submit("film")
        await api.wait_until(job, "processing")
        await films.replace("new", "status-store", *STAGES, "gateway")
        completed = await api.wait_until(job, "completed")
        assert completed["result"]["output"] == {"source": "none", "probed": None}
        included = (await api.http.get(f"/jobs/{job}?include=params,outputs")).json()
        assert included["params"] == {}
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")


@pytest.mark.upgrade
@pytest.mark.allows("topology")  # a release may add a stream
async def test_jobs_with_params_end_while_the_gateway_and_the_store_are_downgraded(
    system: System, nats: Any, tmp_path: Path
) -> None:
    films = Films(system, tmp_path)
    await films.replace("new", "probing", "status-store", "gateway")
    async with Observer(nats.url) as seen, Api(system.url) as api:
        waiting = await api.submit("film", params={"source": "c"})
        await api.wait_until(waiting, "processing")
        await films.replace("old", "gateway", "status-store")
        plain = await api.submit("film")
        await films.replace("new", "scaling")
        assert (await api.wait_until(waiting, "completed"))["result"]["output"] == expected("c")
        assert (await api.wait_until(plain, "completed"))["result"]["output"] == expected("none")
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
        assert await seen.count("HEIMDEX_UNUSABLE") == 0


@pytest.mark.upgrade
@pytest.mark.allows("topology")  # a release may add a stream
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scripts", [(BEFORE, None), (None, BEFORE)], ids=["upgrade", "downgrade"])
async def test_jobs_that_two_releases_share_all_reach_the_expected_state(
    system: System, nats: Any, database_url: str, scripts: tuple[Path | None, Path | None], order: str
) -> None:
    first, second = scripts
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.1"
    for name in ("gateway", *MOCK_STAGES, "status-store"):
        system.start(name, scripts=first)
    await system.ready()
    async with Observer(nats.url) as seen, Load([system.url], per_second=10, bodies=BODIES) as load:
        for name in ORDERS[order]:
            await load.more(15)
            old = system[name]
            if name == "gateway":  # its port is taken until it has ended
                assert await old.terminate() == 0
            new = system.start(name, scripts=second)
            await new.wait_log("ready")
            if name != "gateway":
                assert await old.terminate() == 0
        await load.more(15)
        await load.stop()
        ends = await load.all_end(database_url)
        assert {job_id for job_id, status in ends.items() if status == "failed"} == load.to_fail
        assert set(ends.values()) == {"completed", "failed"}
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
        assert await seen.count("HEIMDEX_UNUSABLE") == 0, "each release reads what the other writes"
