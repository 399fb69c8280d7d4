"""Follows one job over HTTP to its terminal state, for `heimdex watch` and the option `--watch`."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from heimdex_cli.client import ENDED, Job, JobsApi, StreamEvent
from heimdex_cli.errors import Unreachable
from heimdex_cli.output.attempts import UNSUCCESSFUL, describe_attempt, traceback_of
from heimdex_cli.output.progress import Board

EXIT_CODES = {"completed": 0, "failed": 1, "canceled": 3}
"""The exit code of `heimdex watch` for each terminal state."""

POLL_SECONDS = 0.2
# How long an outage of the API may last. Longer than a restart of the gateway or of its database, on which the job does
# not depend.
MAX_OUTAGE_SECONDS = 30.0


def follow(
    api: JobsApi,
    job_id: str,
    board: Board,
    sleep: Callable[[float], None] = time.sleep,
    max_outage_seconds: float = MAX_OUTAGE_SECONDS,
    *,
    tracebacks: bool = False,
) -> Job:
    """Show the job until it reaches a terminal state, and return it. tracebacks: also show those of the errors.

    It follows the job's live stream, and resumes a broken stream after the last event that it received. It waits while
    the API does not answer. Raises Unreachable after an outage of `max_outage_seconds`, or at once when the API does
    not answer the first request. Raises Unusable for an unknown id.
    """
    job = api.get(job_id)
    board.show(job_id, job)
    answered_at = time.monotonic()
    last_id: str | None = None
    while job["status"] not in ENDED:
        # A stream that breaks or cannot be opened is not an error here: the GET below shows the state of the job, and
        # whether the API answers at all.
        with suppress(Unreachable):
            for event in api.listen(job_id, last_id):
                answered_at = time.monotonic()
                last_id = event.id or last_id
                # The stream starts with the history. Events that the response of GET includes are not shown again.
                if event.data.get("at", "") > job["updated_at"]:
                    _note(board, job_id, event, tracebacks=tracebacks)
                    job = advanced(job, event)
                    board.show(job_id, job)
        try:
            # The complete job, with its result or error, which the events do not have.
            job = api.get(job_id)
            answered_at = time.monotonic()
            board.show(job_id, job)
        except Unreachable:
            if time.monotonic() - answered_at > max_outage_seconds:
                raise
        if job["status"] not in ENDED:
            sleep(POLL_SECONDS)
    return job


def advanced(job: Job, event: StreamEvent) -> Job:
    """Return the job after this event. A terminal event changes only `updated_at`: only GET returns the result."""
    new = job | {"updated_at": event.data["at"]}
    match event.name:
        case "progress":
            furthest = max(job["progress"], int(event.data["progress"]))
            new |= {"status": "processing", "stage": event.data["stage"], "progress": furthest}
        case "handed_over" | "attempt_failed" | "attempt_lost":
            new |= {"status": "processing", "stage": event.data["stage"]}
        case "retried":
            new |= {"status": "pending", "stage": None, "progress": 0}
    return cast(Job, new)


def _note(board: Board, job_id: str, event: StreamEvent, *, tracebacks: bool) -> None:
    data = event.data
    if event.name in UNSUCCESSFUL and (ended := data["ended"]) is not None:
        sentence = describe_attempt(
            event.name, ended["stage"], ended["attempt"], data["error"], data["retry_in_seconds"]
        )
        board.note(f"{job_id}  {sentence}")
    if tracebacks and (text := traceback_of(data)):
        board.note(f"{job_id}  {event.name}\n{text}" if event.name not in UNSUCCESSFUL else text)


def describe_end(job: Job) -> str:
    """Return one sentence about the terminal state of a finished job, with its duration or error."""
    if job["status"] == "completed":
        seconds = (job["result"] or {}).get("total_duration_seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        return f"The job completed{took}."
    if job["status"] == "failed":
        return f"The job failed: {job['error']}"
    return "The job was canceled."
