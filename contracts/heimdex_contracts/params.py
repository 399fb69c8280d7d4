"""Validates a job's parameters against the struct that its type declares. Pure.

What travels with the job is the re-encoding of the validated struct, with its defaults. The text that a caller sent may
hold what msgspec skips and Postgres refuses: keys twice, numbers beyond any range, invalid UTF-8.
"""

import json
import re
from typing import Any, Final, Literal

import msgspec

from heimdex_contracts import json_values
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.json_values import kind, shown
from heimdex_contracts.messages import NOTHING
from heimdex_contracts.pipelines import Pipeline

#: The largest re-encoding, in bytes.
MAX_BYTES: Final = 64 * 1024
_FIELD: Final = "params"
#: Absent, null and an empty object are the same.
_ABSENT: Final = re.compile(rb"\s*(null|\{\s*\})?\s*")
_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")
_AT: Final = re.compile(r"(.*?) - at `(?:key in )?\$(.*)`", re.DOTALL)
_QUOTED: Final = re.compile(r"`(.*)`", re.DOTALL)
#: An item of an object whose keys are free: msgspec does not name its key.
_ANY_KEY: Final = "[...]"
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")

Fault = Literal["not_json", "too_large", "invalid"]


class ParamsRefused(HeimdexError):
    """The parameters do not fit the job type. The text is a sentence that names the field and what is allowed.

    field: the path of what is wrong, such as `params.box.width`. fault: `not_json` for text that no JSON parser takes,
    `too_large` for more than MAX_BYTES, `invalid` for everything else.
    """

    def __init__(self, field: str, sentence: str, fault: Fault = "invalid") -> None:
        super().__init__(sentence)
        self.field = field
        self.fault = fault


def validated(given: bytes | msgspec.Raw, pipeline: Pipeline, prefix: str = "") -> msgspec.Raw:
    """Return the re-encoding of these parameters, NOTHING for a job type without parameters.

    given: the JSON value as the caller sent it, empty for none. prefix: what precedes `params` in the path of a field.
    Raises ParamsRefused.
    """
    text = bytes(given)
    absent = _ABSENT.fullmatch(text) is not None
    if pipeline.params is None:
        if absent:
            return NOTHING
        raise ParamsRefused(
            prefix + _FIELD, f"The field {prefix + _FIELD!r} must be absent: jobs of {pipeline.type!r} have no params."
        )
    if absent:
        text = b"{}"
    try:
        encoded = msgspec.json.encode(pipeline.params_decoder.decode(text))
        _check_keys(text, pipeline, prefix)
    except ParamsRefused:
        raise
    except Exception as error:  # a struct's own __post_init__ may raise anything
        raise _explained(text, pipeline, prefix, error) from None
    if len(encoded) > MAX_BYTES:
        raise ParamsRefused(
            prefix + _FIELD,
            f"The field {prefix + _FIELD!r} has {len(encoded)} bytes; at most {MAX_BYTES} are allowed.",
            "too_large",
        )
    if json_values.too_deep(encoded):
        raise _too_deep(prefix)
    if b"\\u0000" in encoded or _LONG_NUMBER.search(encoded):
        for path, fault in json_values.problems(msgspec.json.decode(encoded), _FIELD):
            raise _refused(prefix + path, fault)
    return msgspec.Raw(encoded)


def _check_keys(text: bytes, pipeline: Pipeline, prefix: str) -> None:
    """Raise for an unknown key of params, also where the struct would ignore it: it is probably misspelt."""
    struct = pipeline.params
    if struct is None or struct.__struct_config__.forbid_unknown_fields:
        return
    known = {*struct.__struct_encode_fields__, struct.__struct_config__.tag_field}
    for key in msgspec.json.decode(text, type=dict[str, msgspec.Raw]):
        if key not in known:
            raise _unknown(prefix + _FIELD, key, struct.__struct_encode_fields__)


def _explained(text: bytes, pipeline: Pipeline, prefix: str, error: Exception) -> ParamsRefused:
    """Return the refusal of parameters that could not be decoded."""
    field = prefix + _FIELD
    try:
        data = json.loads(text.decode(), parse_int=_integer, parse_constant=_refuse_constant)
    except UnicodeDecodeError as reason:
        sentence = f"The field {field!r} is not valid UTF-8: {reason.reason} at byte {reason.start}."
        return ParamsRefused(field, sentence, "not_json")
    except RecursionError:
        return _too_deep(prefix)
    except ValueError as reason:
        return ParamsRefused(field, f"The field {field!r} is not valid JSON: {reason}.", "not_json")
    if not isinstance(data, dict):
        return _refused(field, f"must be an object, not {kind(data)}")
    try:
        for path, fault in json_values.problems(data, _FIELD):
            return _refused(prefix + path, fault)
    except RecursionError:
        return _too_deep(prefix)
    found = _AT.fullmatch(str(error))
    what, path = (found[1], found[2]) if found else (str(error), "")
    path = path.partition(_ANY_KEY)[0]
    place = f"{field}{path}" if not path or path[0] in ".[" else f"{field}.{path}"
    quoted = _QUOTED.search(what)
    schema = _schema_at(pipeline, path)
    if quoted and what.startswith("Object missing required field"):
        missing = f"{place}.{quoted[1]}"
        expected = _described(pipeline, _schema_at(pipeline, f"{path}.{quoted[1]}"))
        return _refused(missing, f"is missing; it must be {expected}" if expected else "is missing")
    if quoted and what.startswith("Object contains unknown field"):
        return _unknown(place, quoted[1], tuple(_resolved(pipeline, schema).get("properties", ())))
    expected = _described(pipeline, schema)
    if not isinstance(error, msgspec.ValidationError):
        return _refused(place, f"is invalid: {type(error).__name__}: {what}"[:500])
    if expected and _is_of_schema(what):
        return _refused(place, f"must be {expected}, not {shown(_value_at(data, path))}")
    return _refused(place, f"is invalid: {what[:1].lower()}{what[1:]}"[:500])


def _is_of_schema(what: str) -> bool:
    """Whether the refusal is one of msgspec's own, and not the text of a struct's __post_init__."""
    return what.startswith(("Expected ", "Invalid ", "Number ", "Object "))


def _refused(field: str, what: str) -> ParamsRefused:
    shown_field = json_values.printable(field)
    return ParamsRefused(shown_field, f"The field {shown_field!r} {json_values.printable(what[:100]) + what[100:]}.")


def _unknown(place: str, key: str, known: tuple[str, ...]) -> ParamsRefused:
    field = json_values.printable(f"{place}.{key}")
    fields = ", ".join(map(repr, known))
    return ParamsRefused(
        field, f"There is no field {field!r}; {f'the fields are {fields}' if fields else 'the object has none'}."
    )


def _too_deep(prefix: str) -> ParamsRefused:
    sentence = f"The field {prefix + _FIELD!r} is nested too deeply: {json_values.MAX_DEPTH} levels are allowed."
    return ParamsRefused(prefix + _FIELD, sentence, "not_json")


def _integer(digits: str) -> int | float:
    # int() takes quadratic time for, and then refuses, one of more than 4,300 digits.
    return int(digits) if len(digits) < 100 else float("inf")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _steps(path: str) -> list[str | int]:
    return [key or int(number) for key, number in _STEP.findall(path)]


def _value_at(data: Any, path: str) -> Any:
    for step in _steps(path):
        try:
            data = data[step]
        except (LookupError, TypeError):
            return data
    return data


def _schema_at(pipeline: Pipeline, path: str) -> dict[str, Any]:
    """Return the part of the JSON schema of the parameters at this path; empty if it cannot be told."""
    schema: dict[str, Any] = pipeline.params_schema or {}
    for step in _steps(path):
        schema = _resolved(pipeline, schema)
        options = [_resolved(pipeline, option) for option in schema.get("anyOf", ())]
        inner: Any = None
        for option in (schema, *options):
            if isinstance(step, int):
                prefixed = option.get("prefixItems", ())
                inner = prefixed[step] if step < len(prefixed) else option.get("items")
            else:
                inner = option.get("properties", {}).get(step, option.get("additionalProperties"))
            if isinstance(inner, dict):
                break
        if not isinstance(inner, dict):
            return {}
        schema = inner
    return schema


def _resolved(pipeline: Pipeline, schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    definitions: dict[str, dict[str, Any]] = (pipeline.params_schema or {}).get("$defs", {})
    return definitions.get(name, {}) if name else schema


def _described(pipeline: Pipeline, schema: dict[str, Any]) -> str:
    """Return what this part of the schema allows, as `a string`, `one of 'a', 'b'`; empty if it cannot be told."""
    schema = _resolved(pipeline, schema)
    if "enum" in schema:
        values = [repr(value) for value in schema["enum"]]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if "const" in schema:
        return repr(schema["const"])
    if "anyOf" in schema:
        parts = [_described(pipeline, option) for option in schema["anyOf"]]
        return " or ".join(dict.fromkeys(parts)) if all(parts) else ""
    match schema.get("type"):
        case "string":
            return "a string" + _limits(schema, "minLength", "maxLength", " characters", "of ")
        case "integer" | "number" as name:
            noun = "an integer" if name == "integer" else "a number"
            return noun + _limits(schema, "minimum", "maximum", "", "from ")
        case "array":
            return "an array" + _limits(schema, "minItems", "maxItems", " items", "of ")
        case "boolean":
            return "true or false"
        case "object":
            return "an object"
        case "null":
            return "null"
    return ""


def _limits(schema: dict[str, Any], least: str, most: str, unit: str, word: str) -> str:
    low, high = schema.get(least), schema.get(most)
    extra = ""
    if low is not None and high is not None:
        extra = f" {word}{low} to {high}{unit}"
    elif low is not None:
        extra = f" {word}at least {low}{unit}" if unit else f" that is at least {low}"
    elif high is not None:
        extra = f" {word}at most {high}{unit}" if unit else f" that is at most {high}"
    for key, words in (("exclusiveMinimum", "greater than"), ("exclusiveMaximum", "less than")):
        if key in schema:
            extra += f" {words} {schema[key]}"
    if schema.get("format"):
        extra += f" in the format {schema['format']}"
    if schema.get("pattern"):
        extra += f" that matches {schema['pattern']}"
    return extra
