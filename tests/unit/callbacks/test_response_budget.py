"""The bytes and events that a receiver may send in one attempt; data within the budget counts."""

import pytest

from heimdex_callbacks.response_budget import MAX_BYTES, MAX_EVENTS, MAX_EVENTS_AT_ONCE, Budget, Overspent

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def understood(budget: Budget, piece: bytes) -> bytes:
    """Return everything of a piece that is parsed, part by part, until the budget is used up."""
    parts = []
    while piece:
        try:
            part, piece = budget.split(piece)
        except Overspent:
            break
        assert part, "something is understood whenever something is paid"
        parts.append(part)
    return b"".join(parts)


def test_bytes_are_accepted_until_the_budget_is_used_up() -> None:
    budget = Budget()
    assert budget.take(b"x" * (MAX_BYTES - 2)) == b"x" * (MAX_BYTES - 2)
    assert budget.take(b"abc") == b"ab"
    assert budget.take(b"") == b"", "the end costs nothing"
    with pytest.raises(Overspent, match=r"^The receiver sent more than 32 KiB before its response was complete\.$"):
        budget.take(b"d")


def test_a_response_in_a_few_pieces_costs_little_and_is_read_at_full_speed() -> None:
    budget = Budget()
    assert [budget.split(line) for line in HEAD.splitlines(keepends=True)] == [
        (line, b"") for line in HEAD.splitlines(keepends=True)
    ]
    assert budget.events_left == MAX_EVENTS - 2 * 3
    assert not budget.unusual


@pytest.mark.parametrize("unit", [b"\n", b"a\n", b"\r\n", b"\n ", b" " * 100, b"\t \t ", HEAD])
def test_a_flood_is_parsed_in_small_parts_up_to_the_limit(unit: bytes) -> None:
    budget = Budget()
    flood = unit * 4096
    part, _ = budget.split(flood)
    assert part.count(b"\n") + max(0, part.count(b" ") + part.count(b"\t") - 1) <= 2 * MAX_EVENTS_AT_ONCE
    all_parts = part + understood(budget, flood[len(part) :])
    assert flood.startswith(all_parts)
    assert all_parts.count(b"\n") <= MAX_EVENTS
    assert budget.unusual


def test_repeated_blanks_count_even_across_pieces_and_single_ones_do_not() -> None:
    budget = Budget()
    assert len(understood(budget, b"a:" + b" " * 4096)) < MAX_EVENTS
    budget = Budget()
    assert understood(budget, b"a b " * 4096) == b"a b " * 4096


def test_a_response_within_the_budget_counts_although_more_follows() -> None:
    budget = Budget()
    assert understood(budget, HEAD + b"\n" * 10_000).startswith(HEAD)
    with pytest.raises(Overspent, match=r"^The receiver sent more than 256 pieces, lines and repeated blanks before"):
        budget.split(b"a")
