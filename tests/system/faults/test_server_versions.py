"""A nats-server that is too old: POST and /readyz report it in a sentence, and an upgrade alone repairs it."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from heimdex_cli.embedded.child_process import ChildProcess
from tests.support.api import Api
from tests.support.nats_versions import TOO_OLD, nats_server
from tests.support.services import System
from tests.support.waiting import eventually

pytestmark = [pytest.mark.full, pytest.mark.allows("topology", "left")]


def run_version(nats: Any, version: str) -> None:
    """Run this version of the server, on the same port and with the same store."""
    nats.stop()
    nats.child = ChildProcess(
        [nats_server(version), "-c", nats.directory / "nats.conf"], log_path=nats.log_path, stop_seconds=15
    )
    nats.start()


async def refusal(api: Api, version: str) -> str | None:
    """Return the detail of POST, if it is a 503 that names this version and /readyz has the same detail."""
    try:
        answer = await api.http.post("/jobs", json={"type": "mock_process"})
        ready = await api.http.get("/readyz")
    except httpx.HTTPError:
        return None
    if answer.status_code != 503 or ready.status_code != 503:
        return None
    detail = str(answer.json()["detail"])
    # Before that a stream may be said to have been changed: it is configured again, and only then is it known that it
    # cannot be.
    return detail if version in detail and ready.json()["nats"]["detail"] == detail else None


@pytest.mark.parametrize("start", ["from nothing", "an upgraded store that goes back"])
async def test_the_version_of_an_old_server_is_reported_and_an_upgrade_repairs_it(
    system: System, api: Api, nats: Any, scratch: Path, start: str
) -> None:
    if start == "from nothing":
        run_version(nats, TOO_OLD)
        system.start_all()
        await eventually(api.is_up)
    else:
        system.start_all()
        await system.ready()
        await api.wait_until(await api.submit(), "completed")
        nats.stop()
        nats.wipe()  # a store of 2.12 with schedules cannot be read by an older server
        run_version(nats, TOO_OLD)
    reason = await eventually(lambda: refusal(api, TOO_OLD))
    assert "2.12" in reason
    batch = await api.http.post("/jobs/batch", json={"jobs": [{"type": "mock_process"}] * 5})
    assert batch.status_code == 503
    run_version(nats, "")

    async def is_ready() -> bool:
        return (await api.http.get("/readyz")).status_code == 200

    await eventually(is_ready, what="all goes on without a restart of ours")
    await api.wait_until(await api.submit(), "completed")
    later = await api.submit(delay_seconds=1)
    await api.wait_until(later, "completed")
    batch = await api.http.post("/jobs/batch", json={"jobs": [{"type": "mock_process"}] * 5})
    assert batch.status_code == 202
    for job_id in batch.json()["job_ids"]:
        await api.wait_until(job_id, "completed")
