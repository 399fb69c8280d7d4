"""What the tests of the whole system share."""

from pathlib import Path

import pytest

from tests.support.services import System


@pytest.fixture
def died(scratch: Path, system: System) -> Path:
    """The file that a launcher makes when it dies at its crash point."""
    path = scratch / "died"
    system.env["TEST_DIED"] = str(path)
    return path
