"""Fixtures of the callback tests: a system whose gateways may call loopback addresses, and a receiver on one."""

from collections.abc import Iterator

import pytest

from tests.support.receiver import SECRET, Receiver
from tests.support.services import System


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of callbacks. It responds with 204 unless the test configures another response."""
    with Receiver() as running:
        yield running


@pytest.fixture
def calling(system: System) -> System:
    """A system with callbacks enabled. No service is started yet."""
    system.env |= {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.0/8"}
    return system
