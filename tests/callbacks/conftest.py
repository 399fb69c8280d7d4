"""Fixtures of the tests of callbacks: a system whose gateways may call loopback, and a receiver there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.receiver import SECRET, Receiver
from tests.harness.services import System


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Answers 204 unless told otherwise."""
    with Receiver() as made:
        yield made


@pytest.fixture
def calling(system: System) -> System:
    """The services with callbacks enabled; none is started yet."""
    system.env |= {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.0/8"}
    return system


@pytest.fixture
def died(scratch: Path, system: System) -> Path:
    """The file that a launcher makes when it dies at its crash point."""
    path = scratch / "died"
    system.env["TEST_DIED"] = str(path)
    return path
