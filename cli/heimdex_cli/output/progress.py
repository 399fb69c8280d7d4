"""Shows the progress of jobs: live bars on a terminal, one line per change elsewhere. Used by the commands watch and
demo.
"""

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from heimdex_cli.client import ENDED, Job
from heimdex_cli.output.tables import COLORS

# Where lines cannot be overwritten (a CI log), progress within a stage is printed at most this often.
_LINE_SECONDS = 0.5


class Board(Protocol):
    """A display of jobs; a context manager."""

    def show(self, label: str, job: Job) -> None:
        """Show the current state of the job in the row of this label."""

    def note(self, sentence: str) -> None:
        """Print a line that stays on the screen."""

    def __enter__(self) -> Self:
        """Start to draw."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, and leave the last state on the screen."""


def open_board(stream: TextIO | None = None) -> Board:
    """Return the board for a stream, by default standard output: bars if it is a terminal, else lines."""
    console = Console(file=stream or sys.stdout, highlight=False)
    return LiveBoard(console) if console.is_terminal else LineBoard(console)


class LiveBoard:
    """Draws a progress bar per job, and redraws it in place."""

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
        """Update the job's bar. Its clock stops when the job reaches a terminal state."""
        color = COLORS.get(job["status"], "default")
        fields = {"status": f"[{color}]{job['status']:<10}[/]", "stage": f"{job['stage'] or '':<10}"}
        if label not in self._rows:
            self._rows[label] = self._progress.add_task(label, total=100, label=label, status="", stage="")
        row = self._rows[label]
        self._progress.update(row, completed=job["progress"], **fields)  # type: ignore[arg-type]
        if job["status"] in ENDED:
            self._progress.stop_task(row)

    def note(self, sentence: str) -> None:
        """Print the sentence above the bars."""
        self._progress.console.print(sentence, markup=False, emoji=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class LineBoard:
    """Prints one line per change, for a stream that is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._opened_at = time.monotonic()
        self._shown: dict[str, tuple[tuple[str, str | None], int, float]] = {}

    def show(self, label: str, job: Job) -> None:
        """Print the job at once when its status or stage changes, and at most every half second when only its progress
        does.
        """
        now = time.monotonic()
        state = (job["status"], job["stage"])
        old_state, old_progress, printed_at = self._shown.get(label, (None, -1, 0.0))
        if state == old_state and (job["progress"] == old_progress or now - printed_at < _LINE_SECONDS):
            return
        self._shown[label] = (state, job["progress"], now)
        self.note(f"{label}  {job['status']:<10} {job['stage'] or '-':<10} {job['progress']:>3}%")

    def note(self, sentence: str) -> None:
        """Print the sentence, preceded by the seconds since the board was opened."""
        print(f"{time.monotonic() - self._opened_at:6.1f} s  {sentence}", file=self._console.file, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
