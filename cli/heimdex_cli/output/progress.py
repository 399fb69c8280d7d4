"""Show jobs moving: live bars on a terminal, one line per change elsewhere. follow.py and demo.py draw on
it.
"""

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from heimdex_cli.client import ENDED, Job
from heimdex_cli.output.tables import COLORS

# Where lines cannot be overdrawn (a CI log), progress within a stage is told this often.
_LINE_SECONDS = 0.5


class Board(Protocol):
    """Where jobs are shown; a context manager."""

    def show(self, label: str, job: Job) -> None:
        """The job as it is now; the same label is the same row."""

    def note(self, sentence: str) -> None:
        """A line that stays."""

    def __enter__(self) -> Self:
        """Begin to draw."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the screen."""


def open_board(stream: TextIO | None = None) -> Board:
    """The board that fits the stream: standard output by default."""
    console = Console(file=stream or sys.stdout, highlight=False)
    return LiveBoard(console) if console.is_terminal else LineBoard(console)


class LiveBoard:
    """Bars that move."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[label]}"),
            TextColumn("{task.fields[status]}"),
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}

    def show(self, label: str, job: Job) -> None:
        """Move the job's bar; its clock stops with the job."""
        color = COLORS.get(job["status"], "default")
        fields = {"status": f"[{color}]{job['status']:<10}[/]", "stage": f"{job['stage'] or '':<10}"}
        if label not in self._rows:
            self._rows[label] = self._progress.add_task(label, total=100, label=label, status="", stage="")
        row = self._rows[label]
        self._progress.update(row, completed=job["progress"], **fields)  # type: ignore[arg-type]
        if job["status"] in ENDED:
            self._progress.stop_task(row)

    def note(self, sentence: str) -> None:
        """Printed above the bars."""
        self._progress.console.print(sentence, markup=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class LineBoard:
    """One line per change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_at = time.monotonic()
        self._shown: dict[str, tuple[tuple[str, str | None], int, float]] = {}

    def show(self, label: str, job: Job) -> None:
        """Printed at once when the status or the stage is new, and every half second when the progress is."""
        now = time.monotonic()
        place = (job["status"], job["stage"])
        old_place, old_progress, told_at = self._shown.get(label, (None, -1, 0.0))
        if place == old_place and (job["progress"] == old_progress or now - told_at < _LINE_SECONDS):
            return
        self._shown[label] = (place, job["progress"], now)
        self.note(f"{label}  {job['status']:<10} {job['stage'] or '-':<10} {job['progress']:>3}%")

    def note(self, sentence: str) -> None:
        """Printed after the seconds since the board was opened."""
        print(f"{time.monotonic() - self._began_at:6.1f} s  {sentence}", file=self._console.file, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
