"""Parameters: what a job type's struct allows travels as its re-encoding, everything else is refused by its field."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from typing import Annotated, Any, Literal

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from msgspec import Meta, Struct, field

from heimdex_contracts.messages import NOTHING
from heimdex_contracts.params import MAX_BYTES, ParamsRefused, validated
from heimdex_contracts.pipelines import Pipeline, Stage


class Color(enum.Enum):
    """Declared in this order, and not in that of the alphabet."""

    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    """Numbers with names."""

    SMALL = 1
    LARGE = 2


class Cat(Struct, tag="cat", forbid_unknown_fields=True):
    lives: int


class Dog(Struct, tag="dog", forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=3)]


class Box(Struct, frozen=True, forbid_unknown_fields=True):
    width: Annotated[int, Meta(ge=1, le=9)]
    height: int = 2


class Other:
    """Room for a second struct of the same name."""

    class Box(Struct, forbid_unknown_fields=True):
        depth: float


class Loose(Struct):
    a: int = 1
    inner: Loose | None = None


class Even(Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n % 2:
            raise ValueError("n must be even")
        match self.n:
            case 4:
                raise KeyError("four")
            case 6:
                raise SystemExit(3)
            case 8:
                raise RecursionError("eight")
            case 10:
                raise UnicodeDecodeError("utf-8", b"x", 0, 1, "ten")
            case 12:
                raise Mute


class Mute(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Tree(Struct, forbid_unknown_fields=True):
    kids: list[Tree] = []


class Camel(Struct, rename="camel", forbid_unknown_fields=True):
    my_name: str
    my_age: int = 3


class Odd(Struct, forbid_unknown_fields=True):
    """Names that look like paths."""

    a: int = field(name="a.b", default=1)
    b: int = field(name="b[0]", default=1)
    c: int = field(name="`c`", default=1)


class Video(Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    language: Literal["auto", "en"] = "auto"
    level: Literal[1, 2] = 1
    color: Color = Color.RED
    size: Size = Size.SMALL
    box: Box | None = None
    other: Other.Box | None = None
    boxes: list[Box] = []
    tags: list[str] = []
    few: Annotated[list[int], Meta(min_length=1, max_length=3)] = field(default_factory=lambda: [1])
    pair: tuple[int, str] = (1, "")
    many: tuple[int, ...] = ()
    free: dict[str, int] = {}
    named: dict[str, Box] = {}
    nested: dict[str, list[dict[str, int]]] = {}
    numbered: dict[int, str] = {}
    pet: Cat | Dog | None = None
    pets: list[Cat | Dog] = []
    when: dt.datetime | None = None
    zoned: Annotated[dt.datetime, Meta(tz=True)] | None = None
    day: dt.date | None = None
    time: dt.time | None = None
    long: dt.timedelta | None = None
    id: uuid.UUID | None = None
    price: decimal.Decimal | None = None
    even: Even | None = None
    tree: Tree | None = None
    camel: Camel | None = None
    odd: Odd | None = None
    anything: Any = None
    f: float = 0.0
    flag: bool = False
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    fives: Annotated[int, Meta(multiple_of=5)] = 5
    slug: Annotated[str, Meta(pattern="^[a-z]+$", max_length=5)] = "a"
    data: bytes = b""
    some: set[int] = set()
    either: int | str | None = None
    loose: Loose = field(default_factory=Loose)


@dataclasses.dataclass
class Plain:
    a: int = 1


class Free(Struct):
    any: Any = None
    free: dict[str, Any] = {}
    plain: Plain | None = None


class Part(Struct, omit_defaults=True, rename="camel"):
    some_number: int = 1


class One(Struct, omit_defaults=True, tag="one"):
    parts: list[Part] = []
    free: dict[str, Part] = {}
    unset: int | msgspec.UnsetType = msgspec.UNSET
    color: Color = Color.BLUE


class Sets(Struct):
    names: set[str] = set()


class Nan(Struct):
    f: float = msgspec.field(default_factory=lambda: math.nan)


class Growing(Struct):
    text: Annotated[str, Meta(max_length=3)] = "abc"

    def __post_init__(self) -> None:
        self.text += "d"


class Anything(Struct):
    anything: Any


class Unread(Struct):
    raw: msgspec.Raw
    more: dict[str, list[msgspec.Raw]] = {}


def pipeline(params: type[Struct] | None) -> Pipeline:
    return Pipeline("video", (Stage("extracting", 1, "some.module:extract"),), params=params)


VIDEO = pipeline(Video)
NOTHING_GIVEN = (b"", b"null", b"{}", b" {\n} ", b"\t null\r\n")


def refusal(given: Any, of: Pipeline = VIDEO, prefix: str = "") -> ParamsRefused:
    with pytest.raises(ParamsRefused) as caught:
        validated(given if isinstance(given, bytes) else json.dumps(given).encode(), of, prefix)
    refused = caught.value
    json.loads(json.dumps([refused.field, str(refused)]).encode())
    for text in (refused.field, str(refused)):
        text.encode()
        assert "\x00" not in text
        assert len(text) < 2500
    assert str(refused).endswith(".")
    assert refused.field.startswith(f"{prefix}params")
    assert repr(refused.field) in str(refused)
    return refused


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"source": 1}, "source", "must be a string, not 1"),
    ({"source": None}, "source", "must be a string, not null"),
    ({"source": ["x"]}, "source", "must be a string, not an array of 1 item"),
    ({"language": "fr"}, "language", "must be one of 'auto', 'en', not 'fr'"),
    ({"language": 1}, "language", "must be one of 'auto', 'en', not 1"),
    ({"level": 3}, "level", "must be one of 1, 2, not 3"),
    ({"color": "green"}, "color", "must be one of 'red', 'blue', not 'green'"),
    ({"size": 3}, "size", "must be one of 1, 2, not 3"),
    ({"box": {}}, "box.width", "is missing; it must be an integer from 1 to 9"),
    ({"box": {"width": "a"}}, "box.width", "must be an integer from 1 to 9, not 'a'"),
    ({"box": {"width": 0}}, "box.width", "must be an integer from 1 to 9, not 0"),
    ({"box": {"width": 1.5}}, "box.width", "must be an integer from 1 to 9, not 1.5"),
    ({"box": []}, "box", "must be an object or null, not an empty array"),
    ({"other": {"depth": "x"}}, "other.depth", "must be a number, not 'x'"),
    ({"boxes": [{"width": 1}, {"width": 10}]}, "boxes[1].width", "must be an integer from 1 to 9, not 10"),
    ({"boxes": [{"width": 1}, {}]}, "boxes[1].width", "is missing; it must be an integer from 1 to 9"),
    ({"tags": ["a", 1]}, "tags[1]", "must be a string, not 1"),
    ({"tags": "a"}, "tags", "must be an array, not 'a'"),
    ({"few": []}, "few", "must be an array of 1 to 3 items, not an empty array"),
    ({"few": [1] * 4}, "few", "must be an array of 1 to 3 items, not an array of 4 items"),
    ({"few": [1, "a"]}, "few[1]", "must be an integer, not 'a'"),
    ({"pair": [1]}, "pair", "must be an array of 2 items, not an array of 1 item"),
    ({"pair": [1, 2]}, "pair[1]", "must be a string, not 2"),
    ({"many": [1, 2, "x"]}, "many[2]", "must be an integer, not 'x'"),
    ({"free": {"a": 1, "b": "x", "c": 2}}, "free.b", "must be an integer, not 'x'"),
    ({"free": [1]}, "free", "must be an object, not an array of 1 item"),
    ({"named": {"a": {"width": 1}, "b": {"width": 0}}}, "named.b.width", "must be an integer from 1 to 9, not 0"),
    ({"named": {"a": {"width": 1}, "b": {}}}, "named.b.width", "is missing; it must be an integer from 1 to 9"),
    ({"nested": {"a": [], "b": [{}, {"x": 1, "y": 2, "z": "3"}]}}, "nested.b[1].z", "must be an integer, not '3'"),
    ({"numbered": {"1": "a", "b": "x"}}, "numbered.b", "has a key that is not allowed: it must be an integer"),
    ({"numbered": {"1": "a", "2": 3}}, "numbered.2", "must be a string, not 3"),
    ({"pet": {"type": "cat"}}, "pet.lives", "is missing; it must be an integer"),
    ({"pet": {"type": "cow"}}, "pet.type", "must be one of 'cat', 'dog', not 'cow'"),
    ({"pet": {"type": 7}}, "pet.type", "must be one of 'cat', 'dog', not 7"),
    ({"pet": {}}, "pet.type", "is missing; it must be one of 'cat', 'dog'"),
    ({"pet": {"type": "dog", "name": "long"}}, "pet.name", "must be a string of at most 3 characters, not 'long'"),
    ({"pet": 7}, "pet", "must be an object or null, not 7"),
    ({"pets": [{"type": "cat", "lives": "x"}]}, "pets[0].lives", "must be an integer, not 'x'"),
    ({"when": "x"}, "when", "must be a date and time such as '2026-01-31T12:00:00Z' or null, not 'x'"),
    (
        {"zoned": "2026-01-31T12:00:00"},
        "zoned",
        "must be a date and time with its time zone such as '2026-01-31T12:00:00Z' or null, not '2026-01-31T12:00:00'",
    ),
    ({"day": "2026-13-01"}, "day", "must be a date such as '2026-01-31' or null, not '2026-13-01'"),
    ({"time": "x"}, "time", "must be a time such as '12:00:00Z' or null, not 'x'"),
    ({"long": "x"}, "long", "must be a duration such as 'PT90S' or null, not 'x'"),
    ({"id": "x"}, "id", "must be a UUID or null, not 'x'"),
    ({"price": "x"}, "price", "must be a decimal number or null, not 'x'"),
    ({"even": {"n": 1}}, "even", "is invalid: n must be even"),
    ({"tree": {"kids": [{"kids": [1]}]}}, "tree.kids[0].kids[0]", "must be an object, not 1"),
    ({"camel": {}}, "camel.myName", "is missing; it must be a string"),
    ({"camel": {"myName": 1}}, "camel.myName", "must be a string, not 1"),
    ({"odd": {"a.b": "x"}}, "odd.a.b", "must be an integer, not 'x'"),
    ({"odd": {"b[0]": "x"}}, "odd.b[0]", "must be an integer, not 'x'"),
    ({"odd": {"`c`": "x"}}, "odd.`c`", "must be an integer, not 'x'"),
    ({"f": True}, "f", "must be a number, not true"),
    ({"flag": 1}, "flag", "must be true or false, not 1"),
    ({"share": 1}, "share", "must be a number that is at least 0 and less than 1, not 1"),
    ({"fives": 3}, "fives", "must be an integer that is a multiple of 5, not 3"),
    ({"slug": "A"}, "slug", "must be a string of at most 5 characters that matches ^[a-z]+$, not 'A'"),
    ({"data": "!"}, "data", "must be a string in base64, not '!'"),
    ({"some": [1, "x"]}, "some[1]", "must be an integer, not 'x'"),
    ({"either": []}, "either", "must be an integer or a string or null, not an empty array"),
    ({"loose": {"inner": {"a": "1"}}}, "loose.inner.a", "must be an integer, not '1'"),
]


@pytest.mark.parametrize(("given", "path", "sentence"), WRONG, ids=[path for _, path, _ in WRONG])
def test_what_a_field_does_not_allow_is_refused_by_its_path_with_what_it_allows(
    given: dict[str, Any], path: str, sentence: str
) -> None:
    refused = refusal({"source": "x", **given})
    assert (refused.field, refused.fault) == (f"params.{path}", "invalid")
    assert str(refused) == f"The field {refused.field!r} {sentence}."


UNKNOWN = [
    ({"camle": {}}, "camle", "'camel'"),
    ({"box": {"width": 1, "x": 2}}, "box.x", "the fields are 'width', 'height'."),
    ({"boxes": [{"width": 1}, {"width": 1, "x": 2}]}, "boxes[1].x", "the fields are 'width', 'height'."),
    ({"named": {"a": {"width": 1}, "b": {"width": 1, "x": 2}}}, "named.b.x", "the fields are 'width', 'height'."),
    ({"pet": {"type": "dog", "nam": "x"}}, "pet.nam", "the fields are 'type', 'name'."),
    ({"tree": {"kids": [{"kids": [{"kid": 1}]}]}}, "tree.kids[0].kids[0].kid", "the fields are 'kids'."),
    ({"camel": {"my_name": "x"}}, "camel.my_name", "the fields are 'myName', 'myAge'."),
    ({"odd": {"z`z": 1}}, "odd.z`z", "the fields are 'a.b', 'b[0]', '`c`'."),
    ({"loose": {"b": 1}}, "loose.b", "the fields are 'a', 'inner'."),
    ({"loose": {"inner": {"inner": {"b": 1}}}}, "loose.inner.inner.b", "the fields are 'a', 'inner'."),
]


@pytest.mark.parametrize(("given", "path", "allowed"), UNKNOWN, ids=[path for _, path, _ in UNKNOWN])
def test_an_unknown_key_is_refused_at_any_depth_also_where_the_struct_ignores_it(
    given: dict[str, Any], path: str, allowed: str
) -> None:
    refused = refusal({"source": "x", **given})
    assert (refused.field, refused.fault) == (f"params.{path}", "invalid")
    assert str(refused).startswith(f"There is no field {refused.field!r}; the fields are ")
    assert allowed in str(refused)


def test_a_struct_that_ignores_keys_takes_its_own_and_refuses_every_other() -> None:
    loose = pipeline(Loose)
    assert validated(b'{"a":2,"inner":{"a":3}}', loose) == msgspec.Raw(b'{"a":2,"inner":{"a":3,"inner":null}}')
    assert refusal({"b": 1}, loose).field == "params.b"

    free = {"any": {"x": [{"y": 1}]}, "free": {"z": {"y": 1}}, "plain": {"a": 1}}
    assert json.loads(bytes(validated(json.dumps(free).encode(), pipeline(Free)))) == free
    assert refusal({"plain": {"b": 1}}, pipeline(Free)).field == "params.plain.b"


@pytest.mark.parametrize("given", NOTHING_GIVEN)
def test_absent_null_and_an_empty_object_are_the_same(given: bytes) -> None:
    refused = refusal(given)
    assert (refused.field, refused.fault) == ("params.source", "invalid")
    assert str(refused) == "The field 'params.source' is missing; it must be a string."
    assert validated(given, pipeline(None)) is NOTHING
    assert bytes(validated(given, pipeline(Tree))) == b'{"kids":[]}'


@pytest.mark.parametrize("given", [b"[]", b"7", b'""', b"true", b'{"a":1}', b"[NaN]", b"\xff", b"{" * 5000])
def test_a_type_without_params_refuses_any(given: bytes) -> None:
    refused = refusal(given, pipeline(None), "jobs[1].")
    assert (refused.field, refused.fault) == ("jobs[1].params", "invalid")
    assert str(refused) == "The field 'jobs[1].params' must be absent: jobs of 'video' have no params."


@pytest.mark.parametrize(
    ("given", "shown"),
    [(b"[]", "an empty array"), (b"7", "7"), (b'"x"', "'x'"), (b"true", "true"), (b"[1,2]", "an array of 2 items")],
)
def test_params_that_are_no_object_are_refused(given: bytes, shown: str) -> None:
    refused = refusal(given)
    assert (refused.field, refused.fault) == ("params", "invalid")
    assert str(refused) == f"The field 'params' must be an object, not {shown}."


def test_the_field_of_a_job_in_a_batch_has_its_place_before_it() -> None:
    prefix = "jobs[1]."
    assert refusal({}, prefix=prefix).field == "jobs[1].params.source"
    assert refusal([], prefix=prefix).field == "jobs[1].params"
    assert refusal({"source": "x", "nope": 1}, prefix=prefix).field == "jobs[1].params.nope"
    assert refusal({"source": "x", "tags": ["", "\x00"]}, prefix=prefix).field == "jobs[1].params.tags[1]"
    assert refusal({"source": "x" * 70_000}, prefix=prefix).field == "jobs[1].params"
    assert refusal(b'{"source":NaN}', prefix=prefix).field == "jobs[1].params"
    assert refusal(b"[" * 5000, prefix=prefix).field == "jobs[1].params"


@pytest.mark.parametrize(
    "given",
    [
        b'{"source":NaN}',
        b'{"source":"x","anything":[-Infinity]}',
        b'{"source":"x","f":Infinity}',
        b'{"source":"\xff"}',
        b'{"\xff":1}',
        b'{"source":"x","anything":{"\xc3":1}}',
        b'{"source":"x","unknown":"\xff"}',
        b'{"source":"x"',
        b'{"source":x}',
        b'{"source":"x",}',
        b'{"source":"x"}}',
        b"{'source':'x'}",
        b'{"source":"a\nb"}',
        b'{"source":"\x00"}',
        b'{"source":"\\x"}',
        b'{"source":"x","f":01}',
        b"\xef\xbb\xbf{}",
        b"nul",
        b"\x00",
        b"[" * 10_000,
        b'{"source":' * 10_000,
        b'{"source":"x","anything":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"source":"x","anything":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"source":"x","tree":' + b'{"kids":[' * 60 + b"]}" * 60 + b"}",
        b'{"source":"x","unknown":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=lambda given: str(given[:40]),
)
def test_what_is_no_json_or_too_deep_is_not_json(given: bytes) -> None:
    refused = refusal(given)
    assert (refused.field, refused.fault) == ("params", "not_json")


def test_99_levels_within_params_are_allowed() -> None:
    given = b'{"source":"x","anything":' + b"[" * 99 + b"]" * 99 + b"}"
    assert b'"anything":' + b"[" * 99 in bytes(validated(given, VIDEO))


UNHOLDABLE = [
    (b'"anything":1e999', "anything", "finite"),
    (b'"f":-1e999', "f", "finite"),
    (b'"free":{"a":1e999}', "free.a", "finite"),
    (b'"anything":[{"a":"\\ud800"}]', "anything[0].a", "half of a surrogate pair"),
    (b'"tags":["\\ude00\\ud800"]', "tags[0]", "half of a surrogate pair"),
    (b'"\\ud800":1', "\\ud800", "half of a surrogate pair"),
    (b'"free":{"\\ud800":1}', "free.\\ud800", "half of a surrogate pair"),
    (b'"tags":["a\\u0000"]', "tags[0]", "NUL"),
    (b'"\\u0000":1', "\\x00", "NUL"),
    (b'"free":{"a\\u0000":1}', "free.a\\x00", "NUL"),
    (b'"anything":{"a":{"\\u0000":1}}', "anything.a.\\x00", "NUL"),
    (b'"box":{"width":99999999999999999999}', "box.width", "64 bits"),
    (b'"either":18446744073709551616', "either", "64 bits"),
    (b'"free":{"a":-9223372036854775809}', "free.a", "64 bits"),
    (b'"anything":18446744073709551616', "anything", "64 bits"),
    (b'"anything":[-9223372036854775809]', "anything[0]", "64 bits"),
    (b'"anything":1' + b"0" * 5000, "anything", "64 bits"),
    (b'"f":1' + b"0" * 5000, "f", "64 bits"),
]


@pytest.mark.parametrize(("given", "path", "fault"), UNHOLDABLE, ids=[str(given[:30]) for given, _, _ in UNHOLDABLE])
def test_json_that_a_service_behind_cannot_hold_is_refused_by_its_path(given: bytes, path: str, fault: str) -> None:
    refused = refusal(b'{"source":"x",' + given + b"}")
    assert (refused.field, refused.fault) == (f"params.{path}", "invalid")
    assert fault in str(refused)


def test_numbers_at_the_limits_of_64_bits_are_allowed() -> None:
    given = b'{"source":"0000000000000000000000","anything":[18446744073709551615,-9223372036854775808],"f":1e30}'
    encoded = bytes(validated(given, VIDEO))
    assert b"[18446744073709551615,-9223372036854775808]" in encoded
    assert b'"f":1e30' in encoded
    # An integer is a number too: this one is only a float in the struct.
    assert b'"f":1e20' in bytes(validated(b'{"source":"x","f":100000000000000000000}', VIDEO))


@pytest.mark.parametrize(
    ("given", "path", "value"),
    [
        (b'{"source":"a","source":"b"}', "source", "b"),
        (b'{"source":1,"source":"b"}', "source", "b"),
        (b'{"source":"x","f":1e999,"f":1.5}', "f", 1.5),
        (b'{"source":"x","anything":{"a":"\\u0000","a":1}}', "anything", {"a": 1}),
        (b'{"source":"x","free":{"a":"x","a":2}}', "free", {"a": 2}),
        (b'{"source":"x","tags":[1],"tags":["\xc3\xa9"]}', "tags", ["é"]),
    ],
)
def test_of_a_key_that_occurs_twice_the_last_one_counts_and_is_kept(given: bytes, path: str, value: Any) -> None:
    encoded = bytes(validated(given, VIDEO))
    assert json.loads(encoded)[path] == value
    assert encoded.count(b'"source"') == 1


def test_of_a_key_that_occurs_twice_the_last_one_is_refused_if_it_is_wrong() -> None:
    refused = refusal(b'{"source":"a","source":1}')
    assert str(refused) == "The field 'params.source' must be a string, not 1."
    assert refusal(b'{"source":"x","anything":{"a":1,"a":"\\u0000"}}').field == "params.anything.a"


@pytest.mark.parametrize("number", [b"2", b"2.0", b"2e0", b"20e-1"])
def test_a_whole_number_is_an_integer_however_it_is_written(number: bytes) -> None:
    encoded = bytes(validated(b'{"source":"x","box":{"width":%b},"f":2.0,"anything":1e30}' % number, VIDEO))
    assert b'"box":{"width":2,"height":2}' in encoded
    assert (b'"f":2.0' in encoded, b'"anything":1e30' in encoded) == (True, True)


def test_a_wrong_number_beside_a_whole_one_is_named() -> None:
    refused = refusal(b'{"source":"x","box":{"width":1.0,"height":1.5}}')
    assert str(refused) == "The field 'params.box.height' must be an integer, not 1.5."
    assert refusal(b'{"source":"x","box":{"width":1.0},"anything":1e999}').field == "params.anything"


class Text(Struct, forbid_unknown_fields=True):
    text: str
    flag: bool = True


def text_of(size: int) -> str:
    """Return text with which the re-encoding of a Text has this many bytes."""
    return "x" * (size - len('{"text":"","flag":true}'))


def test_the_re_encoding_has_at_most_64_kib_with_its_defaults() -> None:
    assert MAX_BYTES == 65_536
    text = pipeline(Text)
    assert len(bytes(validated(json.dumps({"text": text_of(65_536)}).encode(), text))) == 65_536
    refused = refusal({"text": text_of(65_537)}, text)
    assert (refused.field, refused.fault) == ("params", "too_large")
    assert str(refused) == "The field 'params' has 65537 bytes; at most 65536 are allowed."
    assert refusal({"text": "é" * 32_768}, text).fault == "too_large", "bytes and not characters"


def test_what_is_sent_may_be_longer_by_its_spaces_and_escapes() -> None:
    escaped = b'{ "text" : "%b" }' % (b"\\u0078" * 60_000)
    for given in (b'{"text":"x"' + b" " * 1_000_000 + b"}", b"\n" * 1_000_000 + b'{"text":"x"}', escaped):
        assert bytes(validated(given, pipeline(Text))).startswith(b'{"text":"x')
    # The same in parameters that are wrong: what is said of them is not their size.
    assert refusal(b'{"text":1' + b" " * 1_000_000 + b"}", pipeline(Text)).fault == "invalid"


@pytest.mark.parametrize(
    "given",
    [
        {"source": "x" * 1_000_000},
        {"source": 1, "tags": ["x"] * 250_000},
        {"source": "x", "tags": [*["x"] * 250_000, 1]},
        {"source": "x", "k" * 100_000: 1},
        {"source": "x", "named": {f"k{number}": {} for number in range(100_000)}},
    ],
    ids=["text", "wrong at the start", "wrong at the end", "a key", "many keys"],
)
def test_a_megabyte_is_too_large_whatever_else_is_wrong_with_it(given: dict[str, Any]) -> None:
    assert refusal(given).fault == "too_large"


def test_a_long_key_is_shown_in_part() -> None:
    for given in ({"k" * 1000: 1}, {"free": {"k" * 1000: "x"}}, {"anything": {"k" * 1000: "\x00"}}):
        refused = refusal({"source": "x", **given})
        assert refused.field.endswith("k" * 100)
        assert "k" * 101 not in str(refused)


def test_a_path_is_shown_whole() -> None:
    deep: dict[str, Any] = {"kids": [1]}
    for _ in range(20):
        deep = {"kids": [deep]}
    assert refusal({"source": "x", "tree": deep}).field == "params.tree" + ".kids[0]" * 21


def test_the_defaults_are_filled_in_and_a_default_that_is_sent_is_the_same_request() -> None:
    encoded = bytes(validated(b'{"source":"x"}', VIDEO))
    assert list(json.loads(encoded)) == [each.encode_name for each in msgspec.structs.fields(Video)]
    assert json.loads(encoded)["language"] == "auto"
    for given in (b'{"language":"auto","source":"x"}', b' { "source" : "\\u0078", "tags":[] } ', encoded):
        assert bytes(validated(given, VIDEO)) == encoded


def test_a_struct_that_omits_its_defaults_is_filled_in_all_the_same() -> None:
    encoded = validated(b'{"type":"one","parts":[{}],"free":{"a":{"someNumber":2}}}', pipeline(One))
    assert json.loads(bytes(encoded)) == {
        "type": "one",
        "parts": [{"someNumber": 1}],
        "free": {"a": {"someNumber": 2}},
        "color": "blue",
    }


def test_a_set_is_encoded_in_one_order() -> None:
    given = json.dumps({"names": [f"n{number}" for number in reversed(range(10))]}).encode()
    assert json.loads(bytes(validated(given, pipeline(Sets))))["names"] == [f"n{number}" for number in range(10)]


def test_an_object_with_free_keys_keeps_their_order() -> None:
    assert b'{"b":1,"a":2}' in bytes(validated(b'{"anything":{"b":1,"a":2}}', pipeline(Anything)))


@pytest.mark.parametrize(
    ("n", "sentence"),
    [
        (3, "n must be even"),
        (4, "KeyError: 'four'"),
        (6, "SystemExit: 3"),
        (8, "RecursionError: eight"),
        (10, "'utf-8' codec can't decode byte 0x78 in position 0: ten"),
        (12, "Mute"),
    ],
)
def test_whatever_a_struct_raises_is_a_refusal(n: int, sentence: str) -> None:
    refused = refusal({"n": n}, pipeline(Even))
    assert (refused.field, refused.fault) == ("params", "invalid")
    assert str(refused) == f"The field 'params' is invalid: {sentence}."
    assert refusal({"source": "x", "even": {"n": n}}).field in {"params", "params.even"}


def test_a_struct_whose_own_re_encoding_does_not_fit_it_is_refused_before_a_worker_reads_it() -> None:
    for struct in (Nan, Growing):
        refused = refusal({}, pipeline(struct))
        assert (refused.field, refused.fault) == ("params", "invalid")
        assert str(refused).startswith("The field 'params' does not fit its own type once its defaults are filled in: ")


def test_what_a_struct_takes_as_raw_json_is_read_all_the_same() -> None:
    unread = pipeline(Unread)
    assert bytes(validated(b'{"raw": { "a" : 1, "a":2 } }', unread)) == b'{"raw":{"a":2},"more":{}}'
    for value, fault in (
        (b"NaN", "not_json"),
        (b'"\xff"', "not_json"),
        (b"[1e999]", "invalid"),
        (b'"\\ud800"', "invalid"),
        (b'"\\u0000"', "invalid"),
        (b"18446744073709551616", "invalid"),
    ):
        assert refusal(b'{"raw":%b}' % value, unread).fault == fault
        assert refusal(b'{"raw":1,"more":{"a":[%b]}}' % value, unread).fault == fault


#: Characters that JSON, UTF-8 or Postgres treat in a way of their own.
texts = st.text(st.sampled_from('x"\\/{}[]:é\U0001f600\u2028\n\x00\ud800\x7f$.`'), max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(
    st.dictionaries(texts | st.sampled_from([each.encode_name for each in msgspec.structs.fields(Video)]), anything)
)
def test_any_object_is_refused_by_a_path_or_re_encoded_to_what_fits_the_type(given: dict[str, Any]) -> None:
    text = json.dumps({"source": "x", **given}).encode()
    try:
        encoded = bytes(validated(text, VIDEO))
    except ParamsRefused:
        refusal(text)
        return
    assert bytes(validated(encoded, VIDEO)) == encoded
    assert b"\\u0000" not in encoded.replace(b"\\\\", b"")
    json.loads(encoded)


@hypothesis.given(st.binary(max_size=30))
def test_any_bytes_are_refused_or_nothing(given: bytes) -> None:
    try:
        assert bytes(validated(given, pipeline(Tree))) == b'{"kids":[]}'
    except ParamsRefused:
        refusal(given, pipeline(Tree))
