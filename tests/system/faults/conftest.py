"""Fixtures of the fault tests."""

from pathlib import Path

import pytest

from tests.support.pipelines.behaviours import Duties
from tests.support.services import System


@pytest.fixture
def duties(scratch: Path, system: System) -> Duties:
    """The job types of `duties`, known to every service of `system`."""
    made = Duties(scratch / "duties")
    system.env |= made.env
    return made
