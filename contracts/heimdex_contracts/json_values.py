"""What a JSON value holds that a service behind us cannot: found with its path, so that an error can name the place.

Postgres stores no NUL, UTF-8 has no half of a surrogate pair, and JSON has neither NaN nor infinities. Pure.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

#: The deepest nesting of params and outputs. Each reader parses recursively, from a stack of its own depth, and Python
#: allows 1,000 calls: what one process could write, another might be unable to read.
MAX_DEPTH: Final = 100
#: Integers beyond these cannot be held by Postgres' bigint or by most clients.
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1
_SHOWN_LENGTH: Final = 60


def too_deep(encoded: bytes | memoryview) -> bool:
    """Return whether the JSON is nested more deeply than MAX_DEPTH. encoded: valid JSON."""
    text = bytes(encoded)
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    depth, in_string, skip = 0, False, False
    for byte in text:
        if skip:
            skip = False
        elif in_string:
            skip = byte == 0x5C  # a backslash
            in_string = byte != 0x22
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def problems(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the fault of each string, key and number that cannot be stored, as `must not contain ...`.

    value: built-in types, as a JSON parser returns them. path: that of `value`; keys are appended as `.key`, positions
    as `[1]`.
    """
    match value:
        case str():
            if fault := _of_text(value):
                yield path, fault
        case bool() | None:
            return
        case int():
            if not MIN_INTEGER <= value <= MAX_INTEGER:
                yield path, "must be within the range of 64 bits"
        case float():
            if not math.isfinite(value):
                yield path, "must be a finite number"
        case dict():
            for key, item in value.items():
                place = f"{path}.{printable(key)}" if path else printable(key)
                if fault := _of_text(key):
                    yield place, fault
                yield from problems(item, place)
        case list() | tuple() | set() | frozenset():
            for number, item in enumerate(value):
                yield from problems(item, f"{path}[{number}]")


def _of_text(text: Any) -> str | None:
    if not isinstance(text, str):
        return None
    if "\x00" in text:
        return "must not contain a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
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
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return f"{value:.15g}"
    return kind(value)


def printable(text: Any) -> str:
    """Return text that can be encoded and stored, at most 100 characters of it."""
    return str(text)[:100].encode(errors="backslashreplace").decode().replace("\x00", "\\x00")
