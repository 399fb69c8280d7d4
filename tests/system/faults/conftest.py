"""Fixtures of the fault tests."""

from pathlib import Path

import pytest

from tests.support.pipelines.behaviours import Behaviours
from tests.support.services import System


@pytest.fixture
def duties(scratch: Path, system: System) -> Behaviours:
    """The job types of `behaviours`, known to every service of `system`."""
    made = Behaviours(scratch / "duties")
    system.env |= made.env
    return made
