"""What `heimdex get`, `list` and `events` print for people: text that is the same on a terminal and in a pipe."""

import json
import sys
from collections.abc import Iterable
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heimdex_cli.client import Event, Job

COLORS = {"completed": "green", "failed": "red", "canceled": "yellow", "processing": "cyan"}
#: In a pipe nothing is folded: a line is a row, for grep.
_PIPE_WIDTH = 10_000


def describe(job: Job) -> str:
    """A line for each key that has a value."""
    rows = [(name, value) for name, value in job.items() if value is not None]
    return "\n".join(f"{name:<11} {json.dumps(value) if isinstance(value, dict) else value}" for name, value in rows)


def print_jobs(jobs: Iterable[Job]) -> None:
    """A row for each job, in the order in which they come."""
    table = _table("id", "status", "stage", "progress", "created", "took", "error")
    for job in jobs:
        table.add_row(
            job["id"],
            Text(job["status"], COLORS.get(job["status"], "")),
            job["stage"] or "-",
            f"{job['progress']}%",
            _shown(job["created_at"]),
            _seconds((_moment(job["updated_at"]) - _moment(job["created_at"])).total_seconds()),
            Text(job["error"] or "-"),
        )
    _print(table)


def print_events(events: Iterable[Event]) -> None:
    """A row for each entry of the history; `took` is of the attempt that it ended."""
    table = _table("id", "at", "run", "event", "stage", "took", "attempt", "error")
    for entry in events:
        ended = entry["ended"]
        retry = entry["retry_in_seconds"]
        then = f"; next try in {retry:g} s" if retry is not None else ""
        table.add_row(
            entry["id"],
            _shown(entry["at"]),
            str(entry["run"]),
            Text(entry["event"], COLORS.get(entry["event"], "")),
            entry["stage"] or "-",
            _seconds(ended["duration_seconds"]) if ended else "-",
            f"{ended['attempt']} of {ended['stage']}" if ended else "-",
            Text(f"{entry['error']}{then}" if entry["error"] else "-"),
        )
    _print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # An id or a time that is folded cannot be copied; an error may be.
        table.add_column(name, no_wrap=name != "error", overflow="fold")
    return table


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _shown(text: str) -> str:
    return f"{_moment(text):%Y-%m-%d %H:%M:%S}Z"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
