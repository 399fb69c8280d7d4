"""Waits for what the stream says of jobs, whatever Postgres knows."""

from collections.abc import Iterable

from tests.support.following import Follower
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.support.watching import Observer


async def published(seen: Observer, jobs: Iterable[str], token: str = "completed", timeout: float = 0) -> None:
    """The newest message of each of these jobs is on `heimdex.jobs.<token>.<job_id>`."""
    for job_id in jobs:

        def last(job_id: str = job_id) -> bool:
            return seen.subjects("heimdex.jobs", job_id)[-1:] == [token]

        await eventually(last, timeout or PATIENCE_SECONDS, f"{job_id} is {token}")


async def told(follower: Follower, jobs: Iterable[str], **wanted: object) -> None:
    """A caller was told this of each of these jobs."""
    for job_id in jobs:

        def so(job_id: str = job_id) -> bool:
            return wanted.items() <= follower.seen(job_id).items() and bool(follower.seen(job_id))

        await eventually(so, what=lambda job_id=job_id: f"{wanted} is told, not {follower.seen(job_id)}")
