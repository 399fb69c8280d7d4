"""The data folder's lock and its record of processes."""

from pathlib import Path

import pytest

from heimdex_cli.embedded.data_directory import DataFolder
from heimdex_cli.errors import Unusable


def test_the_lock_is_free_again_after_unlock(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    first.lock()
    with pytest.raises(Unusable, match="running already"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Unusable, match="cannot be used"):
        DataFolder(tmp_path / "data").lock()


@pytest.mark.parametrize("record", ["", "{", "[1]", '[{"name": "x", "pid": 1}]', "null"])
def test_a_broken_record_is_ignored(tmp_path: Path, record: str) -> None:
    (tmp_path / "processes.json").write_text(record)
    assert DataFolder(tmp_path).end_leftovers() == []


def test_a_process_that_reuses_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    import os

    record = f"""[{{"name": "nats", "pid": {os.getpid()}, "started_at": 1.0,
        "stop_signal": 9, "stop_seconds": 0, "rank": 1}}]"""
    (tmp_path / "processes.json").write_text(record)
    assert DataFolder(tmp_path).end_leftovers() == []
