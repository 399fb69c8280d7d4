"""Follow one job to its end over HTTP: what `heimdex watch` and `heimdex submit --watch` do."""

import time
from collections.abc import Callable

from heimdex_cli.api import ENDED, Job, JobsApi
from heimdex_cli.board import Board
from heimdex_cli.errors import Unreachable

EXIT_CODES = {"completed": 0, "failed": 1, "canceled": 3}
"""What `heimdex watch` exits with, by how the job ended."""

POLL_SECONDS = 0.2
# A restart of the gateway or of its database is shorter; the job does not depend on either.
PATIENCE_SECONDS = 30.0


def follow(api: JobsApi, job_id: str, board: Board, sleep: Callable[[float], None] = time.sleep) -> Job:
    """Show the job until it has ended, and return it then.

    An API that stops answering on the way is waited for; raises Unreachable after 30 s of that, and at once
    when it does not answer the first question. Raises Unusable for an unknown id.
    """
    job = api.get(job_id)
    heard_at = time.monotonic()
    while True:
        board.show(job_id, job)
        if job["status"] in ENDED:
            return job
        sleep(POLL_SECONDS)
        try:
            job = api.get(job_id)
            heard_at = time.monotonic()
        except Unreachable:
            if time.monotonic() - heard_at > PATIENCE_SECONDS:
                raise


def describe_end(job: Job) -> str:
    """One sentence: how the job ended."""
    if job["status"] == "completed":
        seconds = (job["result"] or {}).get("total_duration_seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        return f"The job completed{took}."
    if job["status"] == "failed":
        return f"The job failed: {job['error']}"
    return "The job was canceled."
