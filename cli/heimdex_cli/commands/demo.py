"""`heimdex demo`: starts the whole system in a temporary folder, runs one job that completes and one that fails, and
stops the system.
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
from heimdex_cli.output.attempts import describe_attempt
from heimdex_cli.output.progress import Board, open_board
from heimdex_cli.output.worker_logs import AttemptLog, FailedAttempt
from heimdex_cli.settings import addresses_for_demo
from heimdex_cli.signals import StopRequests

JOB_TYPE = "mock_process"
FAILING_STAGE = "analyzing"
DEADLINE_SECONDS = 60.0
# The demo sends no key and polls often. Keys and rate limits that are set for another system do not apply to it.
OPEN = {"HEIMDEX_API_KEYS": "", "HEIMDEX_RATE_LIMIT": ""}


def demo(commands: Path | None = None) -> int:
    """Run the demo. Returns the exit code: 0 when both jobs ended as expected, 130 when it was interrupted.

    commands: the folder of the services' console scripts; by default that of the running Python.

    Raises HeimdexError when a job did not reach the expected state within 60 s, and whatever `run` raises.
    """
    addresses = addresses_for_demo()
    with tempfile.TemporaryDirectory(prefix="heimdex-demo-") as folder, StopRequests() as requests:
        system = EmbeddedSystem(Path(folder), addresses, environ=OPEN, announce=announce, commands=commands)
        try:
            system.start(requests.stop)
            if system.wait_until_ready(cancelled=requests.stop):
                announce(f"The API answers at {system.url}. One job will complete, one will fail at {FAILING_STAGE}.")
                jobs = _run_jobs(system, requests.stop)
                if not requests.stop():
                    announce("")
                    print_summary(jobs, system.stages)
                    _check(jobs)
        finally:
            announce("Stopping the system ...")
            system.stop(requests.hurry)
        if requests.stop():
            announce("The demo was interrupted; every process has stopped.")
            return 130
    announce("Done: both jobs ended as expected, and no process is left running.")
    return 0


def _run_jobs(system: EmbeddedSystem, cancelled: Callable[[], bool]) -> dict[str, Job]:
    """Submit both jobs and show them until both are finished, the deadline has passed, or `cancelled()` is true.

    Returns the jobs by label.
    """
    with JobsApi(system.url) as api, open_board() as board:
        ids = {"good job": api.submit(JOB_TYPE), "bad job ": api.submit(JOB_TYPE, FAILING_STAGE)}
        labels = {job_id: label for label, job_id in ids.items()}
        attempts = AttemptLog(system.logs, system.stages)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            _note_failures(board, labels, attempts.read_new())
            jobs = {label: api.get(job_id) for label, job_id in ids.items()}
            for label, job in jobs.items():
                board.show(label, job)
            if all(job["status"] in ENDED for job in jobs.values()) or time.monotonic() > deadline or cancelled():
                _note_failures(board, labels, attempts.read_new())
                for label, job in jobs.items():
                    if job["status"] == "failed":
                        board.note(f"{label}  no attempts are left. {job['error']}")
                return jobs
            time.sleep(POLL_SECONDS)


def _note_failures(board: Board, labels: dict[str, str], attempts: list[FailedAttempt]) -> None:
    for failed in attempts:
        sentence = describe_attempt(failed.event, failed.stage, failed.attempt, failed.error, failed.delay_seconds)
        over = failed.event == "attempt_failed" and failed.delay_seconds is None
        board.note(f"{labels.get(failed.job_id, failed.job_id)}  {sentence}{'; no further attempt' if over else ''}")


def print_summary(jobs: dict[str, Job], stages: list[str]) -> None:
    """Print a row per job: its status, the stages it completed, the seconds from acceptance to its terminal state, and
    its error.

    stages: in the order in which a job passes through them.
    """
    table = Table(title="Results")
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
    # Where the output is not a terminal, rich would assume 80 columns.
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
