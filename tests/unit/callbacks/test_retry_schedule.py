"""The delays between the attempts of a callback, and the concurrent calls of one receiver."""

from random import Random

import pytest

from heimdex_callbacks.concurrency import MAX_WAIT_SECONDS, ReceiverSlots
from heimdex_callbacks.retry_schedule import RETRY_DELAYS, delay_after


def test_the_delays_grow_to_an_hour_and_add_up_to_about_a_day() -> None:
    assert RETRY_DELAYS[:6] == (5, 30, 120, 600, 1800, 3600)
    assert list(RETRY_DELAYS) == sorted(RETRY_DELAYS)
    assert max(RETRY_DELAYS) == 3600
    assert 23.5 * 3600 < sum(RETRY_DELAYS) < 25.5 * 3600


def test_each_failed_attempt_but_the_last_is_followed_by_its_delay_within_a_tenth() -> None:
    for seed in range(50):
        random = Random(seed)
        for tries, pause in enumerate(RETRY_DELAYS, 1):
            assert delay_after(tries, random) == pytest.approx(pause, rel=0.101)
    assert len({delay_after(3) for _ in range(20)}) > 1, "those that fail together do not come back together"
    assert delay_after(len(RETRY_DELAYS) + 1) is None


def test_the_calls_at_once_to_one_receiver_are_limited_and_do_not_delay_another() -> None:
    receivers = ReceiverSlots(at_once=2)
    assert receivers.enter("slow", "acme", 0) is None
    assert receivers.enter("slow", "acme", 0) is None
    assert receivers.enter("slow", "acme", 0) is not None
    assert receivers.enter("other", "acme", 0) is None
    receivers.leave("slow", "acme", 15, 15)
    assert receivers.enter("slow", "acme", 15) is None


def test_calls_over_a_receivers_limit_are_delayed_one_by_one_at_its_response_rate() -> None:
    receivers = ReceiverSlots(at_once=2)
    assert receivers.enter("slow", "acme", 0) is None
    for _ in range(100):
        assert receivers.enter("slow", "acme", 0) is None
        receivers.leave("slow", "acme", 10, 0)
    assert receivers.enter("slow", "acme", 0) is None
    waits = [receivers.enter("slow", "acme", 0) or 0 for _ in range(8)]
    # Two at once, 10 s each: another one every 5 s.
    for number, wait in enumerate(waits, 1):
        assert 5 * number * 0.99 < wait < 5 * number * 1.2
    assert all((receivers.enter("slow", "acme", 0) or 0) <= MAX_WAIT_SECONDS * 1.2 for _ in range(1000))


def test_a_receiver_without_calls_is_removed() -> None:
    receivers = ReceiverSlots()
    for number in range(100):
        assert receivers.enter(f"receiver-{number}", f"tenant-{number}", number) is None
        receivers.leave(f"receiver-{number}", f"tenant-{number}", 0.1, number)
    assert not receivers._receivers
    assert not receivers._tenants


def test_a_tenant_gets_half_of_the_free_calls_however_many_receivers_it_has() -> None:
    receivers = ReceiverSlots(at_once=2, in_all=16)

    def fill(tenant: str) -> int:
        names = [f"{tenant}-{number}" for number in range(20)]
        return sum(receivers.enter(name, tenant, 0) is None for name in names)

    assert [fill(tenant) for tenant in ("acme", "beta", "gamma", "delta")] == [8, 4, 2, 1]
    assert receivers.enter("acme-late", "acme", 0) is not None
    for number in range(4):
        receivers.leave(f"beta-{number}", "beta", 15, 15)
    assert receivers.enter("acme-late", "acme", 15) is not None
    assert receivers.enter("gamma-late", "gamma", 15) is None, "what another one gives back is shared again"


def test_calls_over_a_tenants_share_are_delayed_at_the_rate_at_which_its_calls_end() -> None:
    receivers = ReceiverSlots(at_once=2, in_all=4)
    assert receivers.enter("first", "acme", 0) is None
    for number in range(100):
        assert receivers.enter(f"{number}", "acme", 0) is None
        receivers.leave(f"{number}", "acme", 10, 0)
    assert receivers.enter("second", "acme", 0) is None
    for number in range(1, 9):
        wait = receivers.enter(f"other-{number}", "acme", 0) or 0
        assert 5 * number * 0.99 < wait < 5 * number * 1.2
