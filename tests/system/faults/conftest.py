"""Fixtures of the fault tests."""

from pathlib import Path

import pytest

from tests.support.pipelines.behaviours import Behaviours
from tests.support.services import System


@pytest.fixture
def duties(scratch: Path, system: System) -> Behaviours:
    """The job types of `behaviours`, configured in every service of `system`."""
    behaviours = Behaviours(scratch / "duties")
    system.env |= behaviours.env
    return behaviours
