"""Puts a job's parameters together from the command line: `--params` is JSON, and `--param name=value` sets one."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from heimdex_cli.errors import Unusable

#: The API takes no larger body.
_MAX_BYTES = 1024 * 1024
_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "an array in JSON",
    "object": "an object in JSON",
    "null": "null",
}

Schema = dict[str, Any]


def assembled(params: str | None, settings: Sequence[str], schema: Callable[[], Schema | None]) -> Any:
    """Return the parameters of a job, None if none are given.

    params: an object in JSON, or `@` and the name of a file with one; `@-`: standard input. settings: `name=value`
    each, which override `params`; `a.b=value` sets a key of the object `a`. schema: returns the JSON schema of the
    parameters, None if it is not known; it is called only for `settings`, of which it gives the types.

    Raises Unusable.
    """
    whole = None if params is None else _parsed(params)
    if not settings:
        return whole
    if not isinstance(whole, dict | None):
        raise Unusable("--param sets a key of --params, which is not an object in JSON.")
    values: dict[str, Any] = whole or {}
    declared = schema() or {}
    paths: set[tuple[str, ...]] = set()
    for setting in settings:
        name, equals, text = setting.partition("=")
        path, part = _path(name, declared)
        if not equals or not all(path):
            raise Unusable(f"--param {setting[:80]!r} is not of the form name=value.")
        if path in paths:
            raise Unusable(f"--param {name} is given twice.")
        paths.add(path)
        _set(values, name, path, _value(name, text, _options(part, declared)))
    return values


def _parsed(params: str) -> Any:
    where, text = ("--params", params) if not params.startswith("@") else (f"--params {params}", _read(params[1:]))
    try:
        value = _decoded(text)
        json.dumps(value)  # takes less depth than reading
        return value
    except RecursionError:
        raise Unusable(f"{where} is nested too deeply.") from None
    except ValueError as error:
        raise Unusable(f"{where} is not valid JSON: {error}.") from error


def _read(name: str) -> str:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise Unusable(f"--params @{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Unusable(f"--params @{name} is not valid UTF-8.") from error
    if len(content) > _MAX_BYTES:
        raise Unusable(f"--params @{name} has more than 1 MiB.")
    return text


def _decoded(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_number, parse_int=_integer)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")  # JSON has no infinity
    return number


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"the number {digits[:40]}… is too large")
    return int(digits)


def _path(name: str, declared: Schema) -> tuple[tuple[str, ...], Schema]:
    """Split the name at its dots, as far as no parameter has a name with a dot. Returns the schema there too."""
    steps: list[str] = []
    part, rest = declared, name
    while True:
        objects = [option for option in _options(part, declared) if isinstance(option, dict)]
        known = {key for option in objects for key in option.get("properties", ())}
        step = max(
            (key for key in known if rest == key or rest.startswith(f"{key}.")),
            key=len,
            default=rest.partition(".")[0],
        )
        steps.append(step)
        inner = (option.get("properties", {}).get(step, option.get("additionalProperties")) for option in objects)
        part = next((each for each in inner if isinstance(each, dict)), {})
        if rest == step:
            return tuple(steps), part
        rest = rest[len(step) + 1 :]


def _options(part: Schema, declared: Schema) -> list[Schema]:
    """Return the alternatives of a part of a JSON schema."""
    if "$ref" in part:
        return _options(declared.get("$defs", {}).get(part["$ref"].rpartition("/")[2], {}), declared)
    if "anyOf" in part:
        return [option for each in part["anyOf"] for option in _options(each, declared)]
    return [part]


def _value(name: str, text: str, options: list[Schema]) -> Any:
    """Return the value: the text itself, unless only something else than a string is allowed there."""
    kinds: list[str] = []
    for option in options:
        values = option["enum"] if "enum" in option else [option["const"]] if "const" in option else None
        if values is not None:
            if text in values:
                return text
            kinds += ["string" if isinstance(value, str) else json.dumps(value) for value in values]
        else:
            kind = option.get("type", "string")
            kinds += [kind] if isinstance(kind, str) else kind
    if not kinds or "string" in kinds:
        return text
    try:
        return _decoded(text)
    except (ValueError, RecursionError):
        expected = " or ".join(dict.fromkeys(_KINDS.get(kind, kind) for kind in kinds))
        raise Unusable(f"--param {name} must be {expected}, not {text[:80]!r}.") from None


def _set(values: dict[str, Any], name: str, path: tuple[str, ...], value: Any) -> None:
    for number, step in enumerate(path[:-1], 1):
        if values.get(step) is None:
            values[step] = {}
        values = values[step]
        if not isinstance(values, dict):
            raise Unusable(f"--param {name} sets a key of {'.'.join(path[:number])}, which is not an object.")
    values[path[-1]] = value


def usage(schema: Schema | None) -> str:
    """Return the parameters as `--param` takes them: `source=string [language=auto|en]`, the optional in brackets."""
    declared = schema or {}
    words = []
    for part in _options(declared, declared):
        for name, field in part.get("properties", {}).items():
            word = f"{name}={'|'.join(dict.fromkeys(_kinds(field, declared))) or 'any'}"
            words.append(word if name in part.get("required", ()) else f"[{word}]")
    return " ".join(words)


def _kinds(part: Schema, declared: Schema) -> list[str]:
    kinds: list[str] = []
    for option in _options(part, declared):
        if "enum" in option or "const" in option:
            values = option.get("enum", [option.get("const")])
            kinds += [value if isinstance(value, str) else json.dumps(value) for value in values]
        else:
            kind = option.get("type", [])
            kinds += [kind] if isinstance(kind, str) else kind
    return [kind for kind in kinds if kind != "null"]
