"""Whether others may hold the jobs of a process by now: its leases were not renewed for an ack wait."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream import leases
from heimdex_contracts.runtime.jetstream.leases import Leases


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Held:
    """A delivery whose renewal fails while NATS is not connected."""

    connected = True

    def renew(self) -> None:
        if not self.connected:
            raise BrokerUnavailable("not connected")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    return clock


def renewing(clock: Clock, held: Held, *seconds: float) -> Leases:
    """Return leases with an ack wait of 10 s, renewed after each of these delays."""
    one = Leases(cast("Any", SimpleNamespace(held=[held])), 10)
    for delay in seconds:
        clock.now += delay
        one.renew_all()
    return one


def test_a_long_wait_with_renewals_is_no_lapse(clock: Clock) -> None:
    began = clock.now
    one = renewing(clock, Held(), 5, 9, 9, 9)
    assert not one.lapsed_since(began)


@pytest.mark.parametrize("noticed", [True, False], ids=["renewed since", "not renewed yet"])
def test_a_freeze_of_an_ack_wait_is_a_lapse_for_what_began_before_it(clock: Clock, noticed: bool) -> None:
    one = renewing(clock, Held(), 5)
    began = clock.now + 1
    clock.now += 12
    if noticed:
        one.renew_all()
        clock.now += 5
        one.renew_all()
    assert one.lapsed_since(began)
    assert not one.lapsed_since(began + 2), "what began 9 s before the next renewal has its lease"


def test_a_freeze_before_the_wait_is_no_lapse(clock: Clock) -> None:
    one = renewing(clock, Held(), 5, 60)
    assert not one.lapsed_since(clock.now - 1)


def test_renewals_that_could_not_be_sent_do_not_count(clock: Clock) -> None:
    held = Held()
    one = renewing(clock, held, 5)
    began = clock.now
    held.connected = False
    for _ in range(4):
        clock.now += 3
        one.renew_all()
    assert one.lapsed_since(began)
