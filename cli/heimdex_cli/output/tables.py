"""The text output of `heimdex get`, `list`, `types` and `events`: the same text on a terminal and in a pipe."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heimdex_cli.client import Event, Job, JobType
from heimdex_cli.output.attempts import next_attempt, traceback_of
from heimdex_cli.parameters import usage

COLORS = {"completed": "green", "failed": "red", "canceled": "yellow", "processing": "cyan"}
#: The width of a table in a pipe: wide enough that no row is folded, so that grep sees one row per line.
_PIPE_WIDTH = 10_000
_FOLDED = ("error", "stages", "parameters", "params", "outputs")


def describe(job: Job) -> str:
    """Return the job as text: one line per field that is not null, an object as JSON."""
    rows = [(name, value) for name, value in job.items() if value is not None]
    return "\n".join(f"{name:<11} {_json(value) if isinstance(value, dict) else value}" for name, value in rows)


def print_jobs(jobs: Iterable[Job], include: Sequence[str] = ()) -> None:
    """Print a table with a row per job, in the given order; `took` is the time from submission to the last update.

    include: the keys that the jobs have beside the usual ones, each a column of JSON.
    """
    table = _table("id", "status", "stage", "progress", "created", "took", "error", *include)
    for job in jobs:
        table.add_row(
            job["id"],
            Text(job["status"], COLORS.get(job["status"], "")),
            job["stage"] or "-",
            f"{job['progress']}%",
            _format_time(job["created_at"]),
            _format_seconds((_parse_time(job["updated_at"]) - _parse_time(job["created_at"])).total_seconds()),
            Text(job["error"] or "-"),
            *(Text(_json(job.get(name))) for name in include),
        )
    _print(table)


def print_types(types: Iterable[JobType]) -> None:
    """Print a table with a row per job type, its stages in order and its parameters as `--param` takes them."""
    table = _table("type", "stages", "parameters")
    for each in types:
        stages = ", ".join(stage["name"] for stage in each["stages"])
        table.add_row(Text(each["type"]), Text(stages), Text(usage(each["params"]) or "-"))
    _print(table)


def print_events(events: Sequence[Event], *, tracebacks: bool = False) -> None:
    """Print a table with a row per entry of the history; `took` is the duration of the attempt that it reports.

    tracebacks: after the table, print the traceback of each entry that has one.
    """
    table = _table("id", "at", "run", "event", "stage", "took", "attempt", "error")
    for entry in events:
        ended = entry["ended"]
        then = next_attempt(entry["event"], entry["retry_in_seconds"])
        table.add_row(
            entry["id"],
            _format_time(entry["at"]),
            str(entry["run"]),
            Text(entry["event"], COLORS.get(entry["event"], "")),
            entry["stage"] or "-",
            _format_seconds(ended["duration_seconds"]) if ended else "-",
            f"{ended['attempt']} of {ended['stage']}" if ended else "-",
            Text(f"{entry['error']}{then}" if entry["error"] else "-"),
        )
    _print(table)
    for entry in events:
        if tracebacks and (text := traceback_of(entry)):
            print(f"\n{entry['id']}  {entry['event']}\n{text}")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # What may be long is folded, and nothing else: a folded id or time cannot be copied.
        table.add_column(name, no_wrap=name not in _FOLDED, overflow="fold")
    return table


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _format_time(text: str) -> str:
    return f"{_parse_time(text):%Y-%m-%d %H:%M:%S}Z"


def _format_seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
