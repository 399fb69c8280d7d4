"""Fixtures of the tests of callbacks: a system whose gateways may call loopback, and a receiver there."""

from collections.abc import Iterator

import pytest

from tests.support.receiver import SECRET, Receiver
from tests.support.services import System


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
