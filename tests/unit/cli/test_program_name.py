"""How a user types the command: its name if PATH leads to it, otherwise its path."""

from pathlib import Path

import pytest

from heimdex_cli.output.program_name import typed


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment's folder of commands, below the current folder, with this project's commands."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "heimdex").write_text("#!/bin/sh\n")
    (folder / "heimdex").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


def test_without_an_active_environment_it_is_the_path(scripts: Path) -> None:
    assert typed(scripts) == ".venv/bin/heimdex"


def test_from_another_folder_it_is_the_whole_path(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert typed(scripts) == str(scripts / "heimdex")


def test_where_path_leads_to_it_the_name_is_enough(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{scripts}:/usr/bin:/bin")
    assert typed(scripts) == "heimdex"


def test_where_path_leads_to_another_one_it_is_the_path(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "heimdex").write_text("#!/bin/sh\n")
    (other / "heimdex").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:{scripts}")
    assert typed(scripts) == ".venv/bin/heimdex"


def test_where_there_is_no_console_script_it_is_the_name(tmp_path: Path) -> None:
    assert typed(tmp_path) == "heimdex"
