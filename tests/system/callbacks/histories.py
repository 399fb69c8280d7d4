"""Reads the callback entries of a job's history."""

from typing import Any

from tests.support.api import Api
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.system.api.sse import history


async def callbacks_of(api: Api, job_id: str, run: int = 1) -> list[dict[str, Any]]:
    """Return the callback entries of this run so far."""
    events = await history(api, job_id)
    return [entry for entry in events if entry["event"].startswith("callback_") and entry["run"] == run]


async def wait_for_callback(
    api: Api, job_id: str, last: str = "callback_delivered", run: int = 1, timeout: float = PATIENCE_SECONDS
) -> list[dict[str, Any]]:
    """Wait until the last callback entry of this run is of this kind, and return the run's callback entries."""

    async def entries() -> list[dict[str, Any]]:
        attempts = await callbacks_of(api, job_id, run)
        return attempts if [entry["event"] for entry in attempts][-1:] == [last] else []

    return await eventually(entries, timeout, what=f"{job_id} has {last} in its history")
