"""Reading failed attempts from the workers' logs."""

import json
from pathlib import Path

from heimdex_cli.output.worker_logs import AttemptLog, FailedAttempt

LINE = {"event": "attempt_failed", "job_id": "j", "stage": "analyzing", "attempt": 1, "error": "boom"}


def _append(path: Path, text: str) -> None:
    with path.open("a") as log:
        log.write(text)


def test_new_attempts_are_reported_once_and_other_lines_are_ignored(tmp_path: Path) -> None:
    log, reader = tmp_path / "analyzing.log", AttemptLog(tmp_path, ["extracting", "analyzing"])
    assert reader.read_new() == []
    _append(log, "not JSON about attempt_failed\n" + json.dumps({"event": "started"}) + "\n[]\n")
    _append(log, json.dumps(LINE | {"delay_seconds": 1}) + "\n" + json.dumps(LINE | {"attempt": 4}) + "\n")
    lost = {"event": "attempt_lost", "job_id": "j", "stage": "analyzing", "attempt": 5, "message": "gone"}
    _append(log, json.dumps(lost) + "\n" + json.dumps({"event": "stage_output", "message": "attempt_lost"}) + "\n")
    assert reader.read_new() == [
        FailedAttempt("attempt_failed", "j", "analyzing", 1, "boom", 1.0),
        FailedAttempt("attempt_failed", "j", "analyzing", 4, "boom", None),
        FailedAttempt("attempt_lost", "j", "analyzing", 5, "gone", None),
    ]
    assert reader.read_new() == []


def test_a_half_written_line_is_reported_once_it_is_complete(tmp_path: Path) -> None:
    log, reader = tmp_path / "analyzing.log", AttemptLog(tmp_path, ["analyzing"])
    text = json.dumps(LINE) + "\n"
    _append(log, text[:30])
    assert reader.read_new() == []
    _append(log, text[30:])
    assert [each.attempt for each in reader.read_new()] == [1]
