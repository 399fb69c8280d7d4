"""Fixtures shared by all system tests."""

from pathlib import Path

import pytest

from tests.support.services import System


@pytest.fixture
def died(scratch: Path, system: System) -> Path:
    """The path of the file that a launcher creates when it kills itself at its crash point."""
    path = scratch / "died"
    system.env["TEST_DIED"] = str(path)
    return path
