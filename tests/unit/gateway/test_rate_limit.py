"""The request rate of a key, by a clock that the test moves."""

from hypothesis import given
from hypothesis import strategies as st

from heimdex_gateway.middleware.rate_limit import Limit
from heimdex_gateway.problem import Problem


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(limit: Limit, key: str = "a") -> dict[str, str] | Problem:
    try:
        return limit.take(key)
    except Problem as problem:
        return problem


def allowed(limit: Limit, key: str = "a") -> bool:
    return not isinstance(taken(limit, key), Problem)


def test_a_burst_of_one_seconds_requests_is_allowed_then_one_at_a_time() -> None:
    clock = Clock()
    limit = Limit((5,), clock)
    assert [allowed(limit) for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += 0.2
    assert [allowed(limit) for _ in range(2)] == [True, False]
    clock.now += 100
    assert [allowed(limit) for _ in range(7)] == [True] * 5 + [False] * 2


def test_after_a_period_without_requests_the_burst_size_is_allowed() -> None:
    clock = Clock()
    limit = Limit((2, 10), clock)
    assert [allowed(limit) for _ in range(11)] == [True] * 10 + [False]
    clock.now += 1
    assert [allowed(limit) for _ in range(3)] == [True, True, False]


def test_a_rate_below_one_per_second_allows_one_request() -> None:
    clock = Clock()
    limit = Limit((0.1,), clock)
    assert [allowed(limit), allowed(limit)] == [True, False]
    clock.now += 9
    assert not allowed(limit)
    clock.now += 1.001
    assert allowed(limit)


def test_keys_do_not_count_for_each_other() -> None:
    limit = Limit((1,), Clock())
    assert [allowed(limit, "a"), allowed(limit, "a"), allowed(limit, "b")] == [True, False, True]


def test_the_headers_have_the_remaining_requests_and_the_seconds_until_the_reset() -> None:
    clock = Clock()
    limit = Limit((2, 10), clock)
    assert limit.take("a") == {
        "RateLimit-Limit": "10",
        "RateLimit-Policy": "10;w=5",
        "RateLimit-Remaining": "9",
        "RateLimit-Reset": "1",
    }
    for _ in range(9):
        last = limit.take("a")
    assert (last["RateLimit-Remaining"], last["RateLimit-Reset"]) == ("0", "5")


def test_a_request_over_the_limit_has_the_seconds_until_the_next_one() -> None:
    limit = Limit((0.25, 2), Clock())
    limit.take("a")
    limit.take("a")
    problem = taken(limit)
    assert isinstance(problem, Problem)
    assert problem.status == 429
    assert problem.headers["Retry-After"] == "4"
    assert problem.headers["RateLimit-Remaining"] == "0"
    assert "0.25 a second" in problem.detail


@given(
    rate=st.floats(0.1, 1000),
    most=st.integers(1, 500),
    pauses=st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_rate_and_burst_are_never_exceeded_and_a_retry_after_the_wait_is_allowed(
    rate: float, most: int, pauses: list[float]
) -> None:
    clock = Clock()
    limit = Limit((rate, most), clock)
    answered = 0
    for pause in pauses:
        clock.now += pause
        problem = taken(limit)
        if isinstance(problem, Problem):
            clock.now += float(problem.headers["Retry-After"])
            assert allowed(limit)
        answered += 1
    assert answered <= most + rate * (clock.now - 1000) + 1e-6
