"""What a job's history says of its callbacks, for the tests."""

from typing import Any

from tests.support.api import Api
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.system.api.sse import history


async def callbacks_of(api: Api, job_id: str, run: int = 1) -> list[dict[str, Any]]:
    """The entries of this run, so far."""
    events = await history(api, job_id)
    return [entry for entry in events if entry["event"].startswith("callback_") and entry["run"] == run]


async def told(
    api: Api, job_id: str, last: str = "callback_delivered", run: int = 1, timeout: float = PATIENCE_SECONDS
) -> list[dict[str, Any]]:
    """The entries of this run, once the last one is of this kind."""

    async def entries() -> list[dict[str, Any]]:
        found = await callbacks_of(api, job_id, run)
        return found if [entry["event"] for entry in found][-1:] == [last] else []

    return await eventually(entries, timeout, what=f"{job_id} has {last} in its history")
