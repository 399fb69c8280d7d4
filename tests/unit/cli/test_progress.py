"""The progress bar on a terminal, and the lines in a log."""

import io
from typing import cast

from rich.console import Console

from heimdex_cli.client import Job
from heimdex_cli.output.progress import LineBoard, LiveBoard


def _job(progress: int, status: str = "processing", stage: str | None = "analyzing") -> Job:
    return cast(Job, {"id": "j", "status": status, "stage": stage, "progress": progress})


def test_a_line_is_written_for_each_new_stage_and_only_once() -> None:
    out = io.StringIO()
    with LineBoard(Console(file=out)) as board:
        board.show("j", _job(0, "pending", None))
        for _ in range(3):
            board.show("j", _job(33))
        board.show("j", _job(100, "completed", "indexing"))
    lines = [line.split("s  ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == ["j  pending    -            0%", "j  processing analyzing   33%", "j  completed  indexing   100%"]


def test_the_live_board_draws_the_jobs_last_state_and_keeps_notes() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    with LiveBoard(console) as board:
        board.show("j", _job(33))
        board.note("an [error] in brackets, at stages.py:100: in load")
        board.show("j", _job(100, "completed", "indexing"))
    text = cast(io.StringIO, console.file).getvalue()
    assert "an [error] in brackets, at stages.py:100: in load" in text
    last = text.splitlines()[-2]  # after it, only the cursor is shown again
    assert "completed" in last
    assert "100%" in last
