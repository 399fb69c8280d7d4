"""What a stage may return: what does not survive the way to the next stage is refused where it was made."""

import collections
import dataclasses
import datetime
import decimal
import re
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts.messages import NOTHING
from heimdex_contracts.outputs import MAX_BYTES, MAX_TOGETHER_BYTES, OutputRefused, OutputType

NAN, INF = float("nan"), float("inf")


class Frame(msgspec.Struct):
    at: float
    label: str | None = None
    more: Any = None


class Loose(msgspec.Struct):
    n: int = 0


class Picky(msgspec.Struct):
    """Its __post_init__ raises what an author's code may raise."""

    n: int

    def __post_init__(self) -> None:
        match self.n:
            case 1:
                raise KeyError("one")
            case 2:
                raise SystemExit(2)
            case 3:
                raise Mute
            case 4:
                raise RecursionError


class Mute(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@dataclasses.dataclass
class Plain:
    at: float


class NumpyFloat(float):
    """As numpy.float64: a float by its class, and nothing that an encoder knows."""


class NumpyInt:
    """As numpy.int64."""

    def __index__(self) -> int:
        return 3


def refused(declared: Any, value: Any, earlier: tuple[msgspec.Raw, ...] = ()) -> str:
    with pytest.raises(OutputRefused) as caught:
        OutputType(declared).encode(value, earlier)
    text = str(caught.value)
    text.encode()  # it is logged and stored
    assert "\x00" not in text
    assert text.startswith(("the output", "output"))
    assert len(text) < 1000
    return text


@pytest.mark.parametrize(
    "value",
    [
        NAN,
        -INF,
        [1, {"a": (NAN,)}],
        {"null": None, "a": INF},
        {NAN},
        {"a": {"b": [None, NAN]}},
        {NAN: 1},
        {"a": {INF: 1}},
        Frame(NAN),
        Frame(1, more={"deep": [INF]}),
        Plain(NAN),
        [Plain(1), Plain(INF)],
        collections.OrderedDict(a=NAN),
        {"raw": msgspec.Raw(b"1"), "a": NAN},
    ],
)
def test_a_nan_or_an_infinity_anywhere_is_refused_and_its_place_named(value: Any) -> None:
    assert re.search(r"NaN or an infinity, .*: output", refused(None, value))


@pytest.mark.parametrize(
    ("declared", "value", "place"),
    [
        (float, NAN, "output"),
        (float | None, INF, "output"),
        (Frame, Frame(NAN), "output.at"),
        (Frame, Frame(1, more=[NAN]), "output.more[0]"),
        (list[float | None], [None, NAN], "output[1]"),
        (dict[str, float | None], {"a": -INF}, "output.a"),
        (tuple[float | None, int], (NAN, 1), "output[0]"),
        (Any, {"a": NAN}, "output.a"),
    ],
    ids=repr,
)
def test_a_nan_is_refused_also_where_the_declared_type_would_take_null(declared: Any, value: Any, place: str) -> None:
    assert refused(declared, value).endswith(f": {place}")


@pytest.mark.parametrize("value", [NumpyFloat(1), NumpyFloat("nan"), NumpyInt(), {"a": [NumpyInt()]}])
def test_a_scalar_of_another_library_is_refused_with_what_to_do(value: Any) -> None:
    assert re.search(r"objects of type Numpy\w+ is unsupported; return a built-in type", refused(None, value))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("a\x00", "output must"),
        ({"a\x00": 1}, "output.a\\x00 must"),
        (["", {"x": "\x00"}], "output[1].x must"),
        (Frame(1, "\x00"), "output.label must"),
        (msgspec.Raw(b'"\\u0000"'), "output must"),
    ],
)
def test_a_nul_is_refused_and_its_place_named(value: Any, place: str) -> None:
    assert refused(None, value).startswith(f"{place} not contain a NUL")


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, [{"a": "x\ud83d"}]], ids=ascii)
def test_half_a_surrogate_pair_is_refused(value: Any) -> None:
    assert "half of a surrogate pair" in refused(None, value)


@pytest.mark.parametrize(
    ("declared", "value", "what"),
    [
        (int, "x", "Expected `int`, got `str`"),
        (int, 1.0, "got `float`"),
        (bool, 1, "Expected `bool`"),
        (Frame, {"at": "x"}, r"at `\$\.at`"),
        (Frame, {}, "missing required field `at`"),
        (Frame, Frame("x"), r"got `str` - at `\$\.at`"),  # type: ignore[arg-type]
        (Frame, Frame(1, 7), r"at `\$\.label`"),  # type: ignore[arg-type]
        (list[int], [1, "x"], r"list\[int\].*at `\$\[1\]`"),
        (tuple[int, int], (1,), "length 2"),
        (Picky, {"n": 1}, "KeyError: 'one'"),
        (Picky, {"n": 2}, "SystemExit: 2"),
        (Picky, {"n": 3}, "Mute"),
        (Picky, {"n": 4}, "RecursionError"),
    ],
)
def test_another_type_than_the_declared_one_is_refused(declared: Any, value: Any, what: str) -> None:
    assert re.search(f"^the output does not fit the declared type .*{what}", refused(declared, value))


@pytest.mark.parametrize("declared", [int, Frame, list[int], dict[str, int]], ids=str)
def test_nothing_where_a_type_is_declared_is_refused(declared: Any) -> None:
    assert re.search(r"^the output is missing: the stage declares .* and returned None$", refused(declared, None))


@pytest.mark.parametrize("declared", [None, Any, int | None, Frame | None, type(None)], ids=str)
def test_nothing_where_it_is_allowed_is_no_json_at_all(declared: Any) -> None:
    kept = OutputType(declared)
    assert kept.encode(None) is NOTHING
    assert kept.decode(NOTHING) is None


def looped() -> Any:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


def chain(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_what_refers_to_itself_or_is_nested_too_deeply_is_refused() -> None:
    assert "refers to itself or is nested too deeply" in refused(None, looped())
    assert "refers to itself or is nested too deeply" in refused(None, chain(5000))
    assert "100 levels are allowed" in refused(None, chain(101))
    assert bytes(OutputType(None).encode(chain(100))) == b"[" * 100 + b"0" + b"]" * 100


def test_the_reserved_key_is_refused_at_any_depth_and_allowed_as_a_value() -> None:
    for value in ({"$heimdex": 1}, [{"a": {"$heimdex": None}}], Frame(1, more={"$heimdex": 2})):
        assert "the key '$heimdex', which is reserved" in refused(None, value)
    assert "reserved" in refused(None, {"a": msgspec.Raw(b'{"\\u0024heimdex":1}')}), "however it is written"
    for value in ("$heimdex", {"a": "$heimdex"}, {"a": '"$heimdex":'}, {"$heimdex ": 1}):
        assert OutputType(None).decode(OutputType(None).encode(value)) == value


@pytest.mark.parametrize(
    "value", [object(), lambda: 1, iter([1]), (each for each in [1]), 1j, int, {(1, 2): 1}, {None: 1}]
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    assert refused(None, value).startswith("the output cannot be encoded as JSON: ")


@pytest.mark.parametrize("raw", [b"", b"rubbish", b"[NaN]", b"1e999", b'"\xff"', b'"\\ud800"', b"[1", b"1 2"], ids=repr)
def test_json_of_the_authors_own_is_read_before_it_is_handed_over(raw: bytes) -> None:
    refused(None, {"raw": msgspec.Raw(raw)})
    if raw != b"1e999":  # an unknown field is skipped, and a number of any size is JSON
        refused(Loose, {"n": 1, "unknown": msgspec.Raw(raw)})


ODD = [
    (bytes, b"\x00\xff", b'"AP8="'),
    (set[int], {1, 2}, b"[1,2]"),
    (decimal.Decimal, decimal.Decimal("1.50"), b'"1.50"'),
    (uuid.UUID, uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
    (datetime.date, datetime.date(2026, 1, 31), b'"2026-01-31"'),
    (tuple[int, str], (1, "a"), b'[1,"a"]'),
    (dict[int, str], {1: "a"}, b'{"1":"a"}'),
    (int, 2**64, b"18446744073709551616"),
    (float, 1, b"1"),
    (str, "é\U0001f600\n", '"é\U0001f600\\n"'.encode()),
    (Frame, Frame(1.5, "a", {"x": [None, True]}), b'{"at":1.5,"label":"a","more":{"x":[null,true]}}'),
    (list[Frame], [], b"[]"),
]


@pytest.mark.parametrize(("declared", "value", "encoded"), ODD, ids=repr)
def test_what_survives_comes_back_as_the_declared_type(declared: Any, value: Any, encoded: bytes) -> None:
    kept = OutputType(declared)
    assert bytes(kept.encode(value)) == encoded
    again = kept.decode(msgspec.Raw(encoded))
    assert (again, type(again)) == (value, float if declared is float else type(value))
    assert bytes(OutputType(None).encode(value)) == encoded


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=10)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts.filter("$heimdex".__ne__), inner, max_size=4),
        max_leaves=20,
    )
)
def test_every_value_of_json_survives(value: Any) -> None:
    kept = OutputType(None)
    assert kept.decode(kept.encode(value)) == value


def text_of(size: int) -> str:
    """Return text whose JSON has this many bytes."""
    return "x" * (size - 2)


def test_an_output_has_at_most_16_kib() -> None:
    assert MAX_BYTES == 16_384
    assert len(bytes(OutputType(None).encode(text_of(16_384)))) == 16_384
    assert refused(None, text_of(16_385)).startswith("the output has 16385 bytes as JSON; ")
    assert refused(None, "é" * 8192).startswith("the output has 16386 bytes"), "bytes and not characters"


def test_the_outputs_of_a_job_have_at_most_64_kib_together() -> None:
    assert MAX_TOGETHER_BYTES == 65_536
    encode = OutputType(str).encode
    earlier = tuple(encode(text_of(size)) for size in (16_384, 16_384, 16_384, 8_192))
    assert len(bytes(encode(text_of(8_192), (*earlier, NOTHING)))) == 8_192
    assert "have 65537 bytes together; 65536 are allowed" in refused(str, text_of(8_193), earlier)


def test_an_output_that_does_not_fit_any_more_is_refused_when_it_is_read() -> None:
    with pytest.raises(OutputRefused, match=r"^the output does not fit the declared type Frame: .*`at`"):
        OutputType(Frame).decode(msgspec.Raw(b"{}"))
    with pytest.raises(OutputRefused, match=r"^the output does not fit the declared type int"):
        OutputType(int).decode(NOTHING)
