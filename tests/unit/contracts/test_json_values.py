"""What a JSON value must not hold, and where it holds it."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heimdex_contracts import json_values
from heimdex_contracts.json_values import MAX_DEPTH


def chain(levels: int, inner: Any = 0) -> Any:
    for level in range(levels):
        inner = [inner] if level % 2 else {"[": inner}
    return inner


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize("levels", [0, 1, 4, 5, 99, 100, 101, 104, 105, 300])
def test_too_deep_is_one_level_more_than_allowed(levels: int) -> None:
    assert json_values.too_deep(json.dumps(chain(levels)).encode()) is (levels > MAX_DEPTH)


texts = st.text(st.sampled_from('[]{}"\\/u0aé '), max_size=6)
values = st.recursive(
    st.none() | texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


@given(values, st.integers(90, 105), st.booleans())
@example(["]" * 50] * 50, 100, True)
@example({'\\"]': "\\\\"}, 100, True)
def test_brackets_within_strings_and_keys_open_no_level(value: Any, levels: int, ascii_only: bool) -> None:
    whole = [value, chain(levels, value), value]
    encoded = json.dumps(whole, ensure_ascii=ascii_only).encode()
    assert json_values.too_deep(encoded) is (depth(whole) > MAX_DEPTH)


def test_strings_full_of_brackets_and_many_flat_arrays_are_not_deep() -> None:
    for value in ("[" * 1000, {"{" * 1000: "]" * 1000}, [[]] * 10_000, [{"a": [{}]}] * 5000, ["["] * 5000):
        assert not json_values.too_deep(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("value", "path", "fault"),
    [
        ("a\x00", "x", "NUL"),
        (["", "a\x00"], "x[1]", "NUL"),
        ({"a": {"b\x00": 1}}, "x.a.b\\x00", "NUL"),
        ({"a": [{"b": "\ud800"}]}, "x.a[0].b", "half of a surrogate pair"),
        ({"\udfff": 1}, "x.\\udfff", "half of a surrogate pair"),
        ({"a": float("nan")}, "x.a", "finite"),
        ({"a": (1, float("-inf"))}, "x.a[1]", "finite"),
        ({float("inf"): 1}, "x.inf", "finite"),
        (2**64, "x", "64 bits"),
        ([[-(2**63) - 1]], "x[0][0]", "64 bits"),
    ],
)
def test_each_fault_has_its_path(value: Any, path: str, fault: str) -> None:
    ((found, sentence),) = json_values.problems(value, "x")
    assert found == path
    assert sentence.startswith("must ")
    assert fault in sentence


def test_faults_come_in_the_order_of_the_value_and_a_path_may_begin_empty() -> None:
    value = {"a": ["\x00", {"b": "\x00"}], "c": "\x00"}
    assert [path for path, _ in json_values.problems(value)] == ["a[0]", "a[1].b", "c"]


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**63), 2**64 - 1, 1.5, "", "é\U0001f600", {"": [None, {"a": False}]}, [], {}],
    ids=repr,
)
def test_a_value_that_can_be_stored_has_no_fault(value: Any) -> None:
    assert list(json_values.problems(value)) == []


def test_a_value_of_any_depth_is_looked_through() -> None:
    deep: Any = "\x00"
    for _ in range(5000):
        deep = [deep]
    ((path, _),) = json_values.problems(deep, "x")
    assert path == "x" + "[0]" * 5000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (1.5, "1.5"),
        (10**30, "a number"),
        ("x", "'x'"),
        ("x" * 61, "'" + "x" * 60 + "'…"),
        ([], "an empty array"),
        ([1], "an array of 1 item"),
        ([1, 2], "an array of 2 items"),
        ({"a": 1}, "an object"),
        ("\x00\ud800", "'\\x00\\ud800'"),
    ],
    ids=repr,
)
def test_a_value_is_shown_as_a_person_reads_it(value: Any, text: str) -> None:
    assert json_values.shown(value) == text
    json_values.shown(value).encode()


def test_printable_text_can_be_encoded_and_stored_and_is_cut() -> None:
    assert json_values.printable("a\x00\ud800é") == "a\\x00\\ud800é"
    assert json_values.printable("x" * 1000) == "x" * 100
    assert json_values.printable("x" * 1000, 7) == "x" * 7
