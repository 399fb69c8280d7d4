"""Follow one job to its end over HTTP: what `heimdex watch` and `heimdex submit --watch` do."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from heimdex_cli.client import ENDED, Job, JobsApi, StreamEvent
from heimdex_cli.errors import Unreachable
from heimdex_cli.output.progress import Board

EXIT_CODES = {"completed": 0, "failed": 1, "canceled": 3}
"""What `heimdex watch` exits with, by how the job ended."""

POLL_SECONDS = 0.2
# A restart of the gateway or of its database is shorter; the job does not depend on either.
PATIENCE_SECONDS = 30.0


def follow(api: JobsApi, job_id: str, board: Board, sleep: Callable[[float], None] = time.sleep) -> Job:
    """Show the job until it has ended, and return it then.

    It listens to the job's live stream; one that breaks is taken up again behind the last event that was told. An
    API that stops answering on the way is waited for; raises Unreachable after 30 s of that, and at once when it
    does not answer the first question. Raises Unusable for an unknown id.
    """
    job = api.get(job_id)
    board.show(job_id, job)
    heard_at = time.monotonic()
    last_id: str | None = None
    while job["status"] not in ENDED:
        # Broken, or never there: GET says how the job is, and whether the API is there at all.
        with suppress(Unreachable):
            for told in api.listen(job_id, last_id):
                heard_at = time.monotonic()
                last_id = told.id or last_id
                # The history is told first; what the answer of GET has in it already is not shown again.
                if told.data.get("at", "") > job["updated_at"]:
                    _note(board, job_id, told)
                    job = advanced(job, told)
                    board.show(job_id, job)
        try:
            # The whole answer, with the result or the error.
            job = api.get(job_id)
            heard_at = time.monotonic()
            board.show(job_id, job)
        except Unreachable:
            if time.monotonic() - heard_at > PATIENCE_SECONDS:
                raise
        if job["status"] not in ENDED:
            sleep(POLL_SECONDS)
    return job


def advanced(job: Job, told: StreamEvent) -> Job:
    """The job as this event shows it; an end is left to GET, which alone knows the result."""
    new = job | {"updated_at": told.data["at"]}
    match told.name:
        case "progress":
            furthest = max(job["progress"], int(told.data["progress"]))
            new |= {"status": "processing", "stage": told.data["stage"], "progress": furthest}
        case "handed_over" | "attempt_failed":
            new |= {"status": "processing", "stage": told.data["stage"]}
        case "retried":
            new |= {"status": "pending", "stage": None, "progress": 0}
    return cast(Job, new)


def _note(board: Board, job_id: str, told: StreamEvent) -> None:
    if told.name != "attempt_failed" or told.data["ended"] is None:
        return
    ended, delay = told.data["ended"], told.data["retry_in_seconds"]
    then = f"; next try in {delay:g} s" if delay is not None else ""
    board.note(f"{job_id}  attempt {ended['attempt']} at {ended['stage']} failed: {told.data['error']}{then}")


def describe_end(job: Job) -> str:
    """One sentence: how the job ended."""
    if job["status"] == "completed":
        seconds = (job["result"] or {}).get("total_duration_seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        return f"The job completed{took}."
    if job["status"] == "failed":
        return f"The job failed: {job['error']}"
    return "The job was canceled."
