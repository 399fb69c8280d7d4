"""Waits for the state of jobs in the stream, and as the API returns it, without reading Postgres."""

from collections.abc import Iterable

from tests.support.following import Follower
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.support.watching import Observer


async def published(seen: Observer, jobs: Iterable[str], token: str = "completed", timeout: float = 0) -> None:
    """Wait until the newest message of each of these jobs is on `heimdex.jobs.<token>.<job_id>`."""
    for job_id in jobs:

        def last(job_id: str = job_id) -> bool:
            return seen.subjects("heimdex.jobs", job_id)[-1:] == [token]

        await eventually(last, timeout or PATIENCE_SECONDS, f"{job_id} is {token}")


async def wait_until_returned(follower: Follower, jobs: Iterable[str], **expected: object) -> None:
    """Wait until the API has returned each of these jobs to the follower with these fields."""
    for job_id in jobs:

        def matches(job_id: str = job_id) -> bool:
            return expected.items() <= follower.seen(job_id).items() and bool(follower.seen(job_id))

        await eventually(matches, what=lambda job_id=job_id: f"{job_id} has {expected}; it is {follower.seen(job_id)}")
