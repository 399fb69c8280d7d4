"""What a JSON value holds that a service behind us cannot: found with its path, so that an error can name the place.

Postgres stores no NUL, UTF-8 has no half of a surrogate pair, and JSON has neither NaN nor infinities. Pure.
"""

import math
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

#: The deepest nesting of params and outputs. Each reader parses recursively, from a stack of its own depth, and Python
#: allows 1,000 calls: what one process could write, another might be unable to read.
MAX_DEPTH: Final = 100
#: Integers beyond these cannot be held by Postgres' bigint or by most clients.
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1
_SHOWN_LENGTH: Final = 60
_HARMLESS: Final = frozenset({bool, type(None)})
_HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")
#: Brackets as the level that they open or close, as signed bytes.
_LEVELS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))
_PAIR: Final = b"\x01\xff"
_FLAT_LEVELS: Final = 4


def too_deep(encoded: bytes) -> bool:
    """Return whether the JSON is nested more deeply than MAX_DEPTH. encoded: valid JSON."""
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_DEPTH:
        return False
    # Outside of strings; a backslash escapes only one character.
    plain = encoded.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in encoded else encoded
    brackets = b"".join(plain.split(b'"')[::2]).translate(_LEVELS, _NO_BRACKETS)
    # What is flat goes first: the sum goes through one bracket after the other.
    for _ in range(_FLAT_LEVELS):
        brackets = brackets.replace(_PAIR, b"")
    return max(accumulate(memoryview(brackets).cast("b")), default=0) > MAX_DEPTH - _FLAT_LEVELS


def problems(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the fault of each string, key and number that cannot be stored, as `must not contain ...`.

    value: built-in types, as a JSON parser returns them. path: that of `value`; keys are appended as `.key`, positions
    as `[1]`.
    """
    waiting: list[tuple[Any, Any]] = [(value, path)]
    while waiting:
        part, place = waiting.pop()
        if (fault := _fault(part)) is not None:
            yield _joined(place), fault
        elif isinstance(part, dict):
            for key in part:
                if (fault := _fault(key)) is not None:
                    yield _joined((place, key)), fault
            waiting += [(item, (place, key)) for key, item in reversed(part.items()) if type(item) not in _HARMLESS]
        elif isinstance(part, (list, tuple, set, frozenset)):
            items = [(item, (place, at)) for at, item in enumerate(part) if type(item) not in _HARMLESS]
            waiting += reversed(items)


def _joined(place: Any) -> str:
    """Return the path as text. place: a path, or the pair of a place and the step from there."""
    steps: list[str] = []
    while isinstance(place, tuple):
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{printable(step)}")
    text = "".join(reversed([*steps, place]))
    return text if place else text.removeprefix(".")


def _fault(value: Any) -> str | None:
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, int):
        return None if MIN_INTEGER <= value <= MAX_INTEGER else "must be within the range of 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    return None


def _of_text(text: str) -> str | None:
    if "\x00" in text:
        return "must not contain a NUL character"
    if not text.isascii() and _HALF_CHARACTER.search(text):
        return "must not contain half of a surrogate pair, which is not a character"
    return None


def keys(value: Any) -> Iterator[str]:
    """Yield all keys of all objects in this value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from keys(item)


def kind(value: Any) -> str:
    """Return what JSON calls this value, with its article: `an object`, `a string`, `null`."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return the value as an error shows it: short text and numbers themselves, everything else by its kind."""
    if isinstance(value, str):
        text = printable(repr(value[:_SHOWN_LENGTH]))
        return text + "…" if len(value) > _SHOWN_LENGTH else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and abs(value) < 1e15:
        return f"{value:.15g}"
    if isinstance(value, list):
        if not value:
            return "an empty array"
        return f"an array of {len(value)} item{'' if len(value) == 1 else 's'}"
    return kind(value)


def printable(text: Any, length: int = 100) -> str:
    """Return text that can be encoded and stored, at most `length` characters of it."""
    return str(text)[:length].encode(errors="backslashreplace").decode().replace("\x00", "\\x00")
