"""The description of an exception: bounded and storable, whatever the exception is."""

import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from heimdex import PermanentError, RetryAfter
from heimdex_contracts.exception_text import MAX_LENGTH
from heimdex_stage_worker.execution.failures import CUT, MAX_TRACEBACK_BYTES, errored

TOO_LONG = 3_000_000


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class OddText(str):
    def __getitem__(self, _: Any) -> str:
        raise RuntimeError("cut")

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("encoded")

    __str__ = __format__ = encode  # type: ignore[assignment]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt("not telling")

    __repr__ = __str__


class Speechless(Exception):
    def __str__(self) -> str:
        return 42  # type: ignore[return-value]


class OddlySpoken(Exception):
    def __str__(self) -> str:
        return OddText("odd")


class Metaclass(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")

    __module__ = __name__  # type: ignore[assignment]

    def __instancecheck__(cls, _: object) -> bool:
        raise RuntimeError("no check")

    __subclasscheck__ = __instancecheck__


class Nameless(Exception, metaclass=Metaclass):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class")

    @property
    def __notes__(self) -> list[str]:
        raise SystemExit("no notes")

    def __eq__(self, _: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


class Forged(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no members")


def with_notes(notes: Any) -> BaseException:
    error = ValueError("noted")
    error.__notes__ = notes  # type: ignore[attr-defined]
    return error


def its_own_cause() -> BaseException:
    error, other = ValueError("first"), KeyError("second")
    error.__cause__, other.__cause__ = other, error
    return error


def long_chain() -> BaseException:
    error: BaseException = ValueError("root")
    for number in range(100_000):
        following = ValueError(f"number {number}")
        following.__context__ = error
        error = following
    return error


def deep_recursion() -> BaseException:
    """An exception with 100,000 frames, as after sys.setrecursionlimit."""

    def recurse(depth: int) -> None:
        if depth == 0:
            raise RecursionError("too deep")
        recurse(depth - 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    try:
        recurse(100_000)
    except RecursionError as error:
        return error
    finally:
        sys.setrecursionlimit(limit)
    raise AssertionError


def deep_groups() -> BaseException:
    """Groups of which each holds the one before twice: 2 to the 500th leaves."""
    group: ExceptionGroup[Exception] = ExceptionGroup("innermost", [ValueError("leaf")])
    for _ in range(500):
        group = ExceptionGroup("twice", [group, group])
    return group


HOSTILE: dict[str, Callable[[], BaseException]] = {
    "long name": type("X" * TOO_LONG, (Exception,), {}),
    "long module": type("Long", (Exception,), {"__module__": "m" * TOO_LONG}),
    "module that is not text": type("Odd", (Exception,), {"__module__": 42}),
    "NUL and a surrogate": lambda: with_notes(["\x00", "\ud800"]),
    "odd name": type(OddText("OddName"), (Exception,), {}),
    "long text": lambda: ValueError("y" * TOO_LONG),
    "raises its text": Unspeakable,
    "text that is not text": Speechless,
    "odd text": OddlySpoken,
    "metaclass": Nameless,
    "long notes": lambda: with_notes(["n" * TOO_LONG] * 100),
    "many notes": lambda: with_notes(["note"] * 100_000),
    "notes that are not text": lambda: with_notes([Unspeakable(), 42, OddText("odd")]),
    "notes that are not a list": lambda: with_notes(42),
    "its own cause": its_own_cause,
    "long chain": long_chain,
    "deep recursion": deep_recursion,
    "deep groups": deep_groups,
    "wide group": lambda: ExceptionGroup("wide", [ValueError(str(number)) for number in range(100_000)]),
    "forged group": lambda: Forged("forged", [ValueError("leaf")]),
    "nameless in a group": lambda: BaseExceptionGroup("both", [Nameless(), Unspeakable()]),
    "syntax error": lambda: SyntaxError("bad", (Unspeakable(), "1", 2, b"3")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_stage_raises_is_described_in_bounds_and_can_be_stored(name: str) -> None:
    outcome = errored(raised(HOSTILE[name]()))
    assert outcome.error
    assert outcome.traceback
    assert len(outcome.error) <= MAX_LENGTH
    assert len(outcome.traceback.encode()) <= MAX_TRACEBACK_BYTES
    assert "\x00" not in outcome.error + outcome.traceback
    assert msgspec.json.decode(msgspec.json.encode(outcome.traceback)) == outcome.traceback


def test_a_traceback_has_causes_contexts_and_notes_in_the_order_of_events() -> None:
    def read() -> None:
        raise KeyError("frames")

    try:
        try:
            read()
        except KeyError as error:
            error.add_note("while reading the index")
            raise ValueError("no such video") from error
    except ValueError as error:
        outcome = errored(error)
    assert outcome.error == "ValueError: no such video"
    lines = (outcome.traceback or "").splitlines()
    order = [
        "Traceback (most recent call last):",
        "    read()",
        "KeyError: 'frames'",
        "while reading the index",
        "The above exception was the direct cause of the following exception:",
        '    raise ValueError("no such video") from error',
        "ValueError: no such video",
    ]
    assert [line for line in lines if line in order[1:]] == order[1:]
    assert lines[0] == order[0]


def test_a_context_that_the_stage_suppressed_is_left_out() -> None:
    try:
        try:
            raise KeyError("internal")
        except KeyError:
            raise ValueError("shown") from None
    except ValueError as error:
        outcome = errored(error)
    assert "internal" not in (outcome.traceback or "")


def test_a_group_is_named_by_its_leaves_and_shows_each_of_them() -> None:
    inner = ExceptionGroup("unhandled errors in a TaskGroup", [raised(ValueError("no codec"))])  # type: ignore[list-item]
    outcome = errored(raised(ExceptionGroup("unhandled errors in a TaskGroup", [KeyError("frames"), inner])))
    assert outcome.error == "2 errors: KeyError: 'frames'; ValueError: no codec"
    assert not outcome.permanent
    for line in ("  | KeyError: 'frames'", "  |   | ValueError: no codec"):
        assert line in (outcome.traceback or "").splitlines()


@pytest.mark.parametrize("depth", [1, 2, 5, 50])
def test_a_permanent_error_in_groups_is_permanent_with_its_own_text(depth: int) -> None:
    error: Exception = PermanentError("the file is not a video")
    for number in range(depth):
        error = ExceptionGroup("unhandled errors in a TaskGroup", [ValueError(f"beside {number}"), error])
    outcome = errored(raised(error))
    assert (outcome.error, outcome.permanent) == ("the file is not a video", True)


def test_a_long_traceback_is_cut_to_its_end_and_its_first_line_reports_this() -> None:
    def recurse(depth: int) -> None:
        if depth == 0:
            raise ValueError("ä" * 500)
        recurse(depth - 1) if depth % 2 else recurse_too(depth - 1)

    def recurse_too(depth: int) -> None:
        recurse(depth)

    try:
        recurse(200)
    except ValueError as error:
        outcome = errored(error)
    assert outcome.traceback is not None
    assert outcome.traceback.startswith(CUT)
    assert outcome.traceback.endswith("ä" * 500 + "\n")
    assert MAX_TRACEBACK_BYTES - 4 < len(outcome.traceback.encode()) <= MAX_TRACEBACK_BYTES


def test_a_requested_delay_is_found_alone_and_in_groups_and_the_longest_of_several_counts() -> None:
    alone = errored(raised(RetryAfter(30, "the model is busy")))
    assert (alone.error, alone.retry_after_seconds, alone.permanent) == ("the model is busy", 30, False)
    assert errored(raised(RetryAfter(0))).error == "the stage asked to be retried after 0 s"
    group = ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("no codec"), RetryAfter(5), RetryAfter(7)])
    outer = errored(raised(ExceptionGroup("unhandled errors in a TaskGroup", [KeyError("frames"), group])))
    assert outer.retry_after_seconds == 7
    assert outer.error.startswith("4 errors: KeyError: 'frames'; ValueError: no codec; RetryAfter: ")


def test_a_permanent_error_wins_over_a_requested_delay() -> None:
    outcome = errored(raised(ExceptionGroup("two", [RetryAfter(5), PermanentError("no video")])))
    assert (outcome.error, outcome.permanent, outcome.retry_after_seconds) == ("no video", True, None)


class WithoutADelay(RetryAfter):
    def __init__(self) -> None: ...


class WithAnOddDelay(RetryAfter):
    def __init__(self, delay: object) -> None:
        self.seconds = delay  # type: ignore[assignment]


@pytest.mark.parametrize("error", [WithoutADelay(), *map(WithAnOddDelay, ("5", -1.0, float("nan"), 1e300, None))])
def test_a_delay_that_a_class_of_the_stage_changed_does_not_count(error: RetryAfter) -> None:
    assert errored(raised(error)).retry_after_seconds is None
