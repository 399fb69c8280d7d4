"""Fixtures of the fault tests."""

from pathlib import Path

import pytest

from tests.harness.pipelines.duties import Duties
from tests.harness.services import System


@pytest.fixture
def duties(scratch: Path, system: System) -> Duties:
    """The job types of `duties`, known to every service of `system`."""
    made = Duties(scratch / "duties")
    system.env |= made.env
    return made


@pytest.fixture
def died(scratch: Path, system: System) -> Path:
    """The file that a launcher makes when it dies at its crash point."""
    path = scratch / "died"
    system.env["TEST_DIED"] = str(path)
    return path
