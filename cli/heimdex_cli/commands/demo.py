"""`heimdex demo`: the whole system in a temporary folder, one job that completes and one that fails, then
its end.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from heimdex_cli.client import ENDED, Job, JobsApi
from heimdex_cli.commands.run import announce
from heimdex_cli.commands.watch import POLL_SECONDS
from heimdex_cli.embedded.system import EmbeddedSystem
from heimdex_cli.errors import HeimdexError
from heimdex_cli.output.progress import Board, open_board
from heimdex_cli.output.worker_logs import AttemptLog, FailedAttempt
from heimdex_cli.settings import addresses_for_demo
from heimdex_cli.signals import StopRequests

JOB_TYPE = "mock_process"
FAILING_STAGE = "analyzing"
DEADLINE_SECONDS = 60.0
# It polls as it likes, and has no key: what is set for another system is not meant for this one.
OPEN = {"HEIMDEX_API_KEYS": "", "HEIMDEX_RATE_LIMIT": ""}


def demo(commands: Path | None = None) -> int:
    """Returns the exit code: 0 when both jobs ended as they should, 130 when it was interrupted.

    commands: the folder with the services' console scripts; by default the one this Python runs from.

    Raises HeimdexError when a job did not end as it should within 60 s, and what `run` raises.
    """
    addresses = addresses_for_demo()
    with tempfile.TemporaryDirectory(prefix="heimdex-demo-") as folder, StopRequests() as requests:
        system = EmbeddedSystem(Path(folder), addresses, environ=OPEN, announce=announce, commands=commands)
        try:
            system.start(requests.stop)
            if system.wait_until_ready(cancelled=requests.stop):
                announce(f"The API answers at {system.url}. Two jobs: one completes, one fails at {FAILING_STAGE}.")
                jobs = _run_jobs(system, requests.stop)
                if not requests.stop():
                    announce("")
                    print_summary(jobs, system.stages)
                    _check(jobs)
        finally:
            announce("Stopping everything ...")
            system.stop(requests.hurry)
        if requests.stop():
            announce("The demo was interrupted; everything has ended.")
            return 130
    announce("Done: both jobs ended as they should, and nothing is left running.")
    return 0


def _run_jobs(system: EmbeddedSystem, cancelled: Callable[[], bool]) -> dict[str, Job]:
    """Submit both jobs and show them until they have ended, the deadline has passed, or `cancelled()`."""
    with JobsApi(system.url) as api, open_board() as board:
        ids = {"good job": api.submit(JOB_TYPE), "bad job ": api.submit(JOB_TYPE, FAILING_STAGE)}
        labels = {job_id: label for label, job_id in ids.items()}
        attempts = AttemptLog(system.logs, system.stages)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            _tell(board, labels, attempts.read_new())
            jobs = {label: api.get(job_id) for label, job_id in ids.items()}
            for label, job in jobs.items():
                board.show(label, job)
            if all(job["status"] in ENDED for job in jobs.values()) or time.monotonic() > deadline or cancelled():
                _tell(board, labels, attempts.read_new())
                for label, job in jobs.items():
                    if job["status"] == "failed":
                        board.note(f"{label}  no tries are left. {job['error']}")
                return jobs
            time.sleep(POLL_SECONDS)


def _tell(board: Board, labels: dict[str, str], attempts: list[FailedAttempt]) -> None:
    for each in attempts:
        then = "that was the last" if each.delay_seconds is None else f"next try in {each.delay_seconds:g} s"
        label = labels.get(each.job_id, each.job_id)
        board.note(f"{label}  attempt {each.attempt} at {each.stage} failed: {each.error}; {then}")


def print_summary(jobs: dict[str, Job], stages: list[str]) -> None:
    """A row per job: how it ended, the stages it completed, from acceptance to end how long, why it failed.

    stages: in the order in which a job passes through them.
    """
    table = Table(title="How the jobs ended")
    table.add_column("job", overflow="fold")
    for name in ("status", "stages completed", "total seconds", "error"):
        table.add_column(name)
    for label, job in jobs.items():
        table.add_row(
            f"{label.strip()}\n{job['id']}",
            job["status"],
            "\n".join(_stages_completed(job, stages)) or "-",
            f"{_total_seconds(job):.1f}",
            job["error"] or "-",
        )
    # A log has no width of its own, and would get 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _stages_completed(job: Job, stages: list[str]) -> list[str]:
    if job["result"] is not None:
        return list(job["result"]["stages_completed"])
    return stages[: stages.index(job["stage"])] if job["stage"] in stages else []


def _total_seconds(job: Job) -> float:
    if job["result"] is not None:
        return float(job["result"]["total_duration_seconds"])
    return (datetime.fromisoformat(job["updated_at"]) - datetime.fromisoformat(job["created_at"])).total_seconds()


def _check(jobs: dict[str, Job]) -> None:
    good, bad = jobs.values()
    for label, job, status, stage in (
        ("good job", good, "completed", None),
        ("bad job", bad, "failed", FAILING_STAGE),
    ):
        if job["status"] != status or (stage is not None and job["stage"] != stage):
            where = f" in {job['stage']}" if job["stage"] else ""
            raise HeimdexError(
                f"The {label} {job['id']} should be {status} within {DEADLINE_SECONDS:.0f} s, "
                f"but it is {job['status']}{where} at {job['progress']}%."
            )
