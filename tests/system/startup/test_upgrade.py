"""A rolling deployment from the previous release (installed by `make test-upgrade`) to this one, and back."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.load import Load
from tests.support.services import MOCK_STAGES, System
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
