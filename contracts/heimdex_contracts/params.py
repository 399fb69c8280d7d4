"""Validates a job's parameters against the struct that its type declares. Pure.

What travels with the job is the re-encoding of the validated struct, with its defaults. The text that a caller sent may
hold what msgspec skips and Postgres refuses: keys twice, numbers beyond any range, invalid UTF-8.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import inspect

from heimdex_contracts import json_values, param_types
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.json_values import kind, printable, shown
from heimdex_contracts.messages import NOTHING
from heimdex_contracts.param_types import Step
from heimdex_contracts.pipelines import Pipeline, StructType

#: The largest re-encoding, in bytes.
MAX_BYTES: Final = 64 * 1024
_FIELD: Final = "params"
_SPACES: Final = b" \t\r\n"
#: Absent, null and an empty object are the same.
_ABSENT: Final = re.compile(rb"(null|\{[ \t\r\n]*\})?")
#: 2**63 has 19 digits.
_DIGITS: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER: Final = b"0" * 19
#: A character of one byte may be written as \u0078.
_LONGEST_ESCAPE: Final = 6
#: A float below this is the number that was written.
_EXACT: Final = 2**53
_AT: Final = re.compile(r"(.*) - at `(key` in `)?\$(.*)`", re.DOTALL)
_QUOTED: Final = re.compile(r"`(.*)`", re.DOTALL)
#: An item of an object whose keys are free: msgspec does not name its key.
_ANY_KEY: Final = "[...]"
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_MAX_FIELD_LENGTH: Final = 1000

_SETS: Final = inspect.SetType | inspect.FrozenSetType

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
    text = bytes(given).strip(_SPACES)
    absent = _ABSENT.fullmatch(text) is not None
    field = prefix + _FIELD
    if pipeline.params is None:
        if absent:
            return NOTHING
        raise ParamsRefused(field, f"The field {field!r} must be absent: jobs of {pipeline.type!r} have no params.")
    parameters = _parameters(pipeline.params)
    if absent:
        text = b"{}"
    try:
        encoded = parameters.reencoded(text, field)
    except ParamsRefused:
        raise
    except (Exception, SystemExit) as error:  # a struct's own __post_init__ may raise anything
        encoded = _reencoded_or_explained(text, parameters, field, error)
    if len(encoded) > MAX_BYTES:
        raise _too_large(field, len(encoded))
    if json_values.too_deep(encoded):
        raise _too_deep(field)
    if b"\\u0000" in encoded or _LONG_NUMBER in encoded.translate(_DIGITS):
        for path, fault in json_values.problems(msgspec.json.decode(encoded), field):
            raise _refused(path, fault)
    return msgspec.Raw(encoded)


class _Unreadable(Exception):
    """What a struct's own re-encoding cannot be decoded as."""


class _Parameters:
    """The parameters of one struct.

    encode: with all defaults, and sets in one order, so that the same parameters are the same bytes: what is left out
    would change with the default of the pipeline's next release.
    """

    def __init__(self, struct: StructType) -> None:
        objects = param_types.objects_in(struct)
        self.struct = struct
        self.declared = param_types.declared_by(struct)
        self.decode = msgspec.json.Decoder(struct).decode
        own, *others = [not getattr(each, "forbid_unknown_fields", False) for each in objects]
        self._only_this_ignores_keys, self._ignores_keys = own and not any(others), own or any(others)
        self._known = {*struct.__struct_encode_fields__, struct.__struct_config__.tag_field}
        self._omits = any(each.__struct_config__.omit_defaults for each in param_types.structs_in(struct))
        #: Raw takes whatever stands there, also what no other reader takes.
        self._holds_raw = param_types.holds(struct, inspect.RawType)
        order: Literal["deterministic"] | None = "deterministic" if param_types.holds(struct, _SETS) else None
        self._encoder = msgspec.json.Encoder(order=order)

    def reencoded(self, text: bytes, field: str) -> bytes:
        """Return the re-encoding of this JSON.

        Raises what decoding raises, ParamsRefused for an unknown key, also where a struct would ignore it (it is
        probably misspelt), and _Unreadable if no worker could decode the re-encoding.
        """
        if self._holds_raw:
            text = msgspec.json.encode(msgspec.json.decode(text))
        value = self.decode(text)
        encoded = self._encoder.encode(_with_defaults(value) if self._omits else value)
        try:
            self.decode(encoded)
        except (Exception, SystemExit) as error:
            raise _Unreadable(_text_of(error)) from None
        if self._ignores_keys:
            self._check_keys(text, field)
        return encoded

    def _check_keys(self, text: bytes, field: str) -> None:
        # The shape of most, and the cheaper way.
        if self._only_this_ignores_keys and self._known.issuperset(
            msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        ):
            return
        data = msgspec.json.decode(text)
        if steps := param_types.unknown_field(self.declared, data):
            raise _unknown(field, self.declared, data, steps[:-1], str(steps[-1]))


@cache
def _parameters(struct: StructType) -> _Parameters:
    return _Parameters(struct)


def _with_defaults(value: Any) -> Any:
    """Replace each struct by a dict of all its fields: a struct may omit those that have their default."""
    match value:
        case msgspec.Struct():
            config = value.__struct_config__
            names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
            fields = {encoded: _with_defaults(getattr(value, name)) for encoded, name in names}
            if config.array_like:
                return [*([] if config.tag is None else [config.tag]), *fields.values()]
            tag = {} if config.tag_field is None else {config.tag_field: config.tag}
            return tag | {name: item for name, item in fields.items() if item is not msgspec.UNSET}
        case dict():
            return {key: _with_defaults(item) for key, item in value.items()}
        case list() | tuple():
            return [_with_defaults(item) for item in value]
    return value


def _reencoded_or_explained(text: bytes, parameters: _Parameters, field: str, error: BaseException) -> bytes:
    """Return the re-encoding of parameters of which only the way to write them is not msgspec's.

    These are a key that occurs twice, of which the last one counts, whatever the first one is, and an integer with a
    point or an exponent. Raises ParamsRefused for all others that could not be decoded.
    """
    bare = len(text.translate(None, _SPACES))
    if bare > MAX_BYTES * _LONGEST_ESCAPE:  # before a megabyte is parsed only to name what is wrong in it
        raise _too_large(field, bare)
    data = _parsed(text, field)
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
    if len(plain) > MAX_BYTES:
        raise _too_large(field, len(plain))
    if json_values.too_deep(plain):
        raise _too_deep(field)
    if not isinstance(data, dict):
        raise _refused(field, f"must be an object, not {shown(data)}")
    for path, fault in json_values.problems(data, field):
        raise _refused(path, fault)
    if not isinstance(error, _Unreadable):
        try:
            return parameters.reencoded(plain, field)
        except ParamsRefused:
            raise
        except (Exception, SystemExit) as raised:
            error = raised
    if isinstance(error, _Unreadable):
        raise _refused(field, f"does not fit its own type once its defaults are filled in: {error}")
    raise _explained(parameters, field, data, error)


def _parsed(text: bytes, field: str) -> Any:
    try:
        decoded = text.decode()
        try:
            return json.loads(decoded, parse_constant=_refuse_constant, parse_float=_number)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of more digits than int() takes, or a constant such as NaN
            return json.loads(decoded, parse_constant=_refuse_constant, parse_float=_number, parse_int=_integer)
    except UnicodeDecodeError as reason:
        sentence = f"The field {field!r} is not valid UTF-8: {reason.reason} at byte {reason.start}."
        raise ParamsRefused(field, sentence, "not_json") from None
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError as reason:
        raise ParamsRefused(field, f"The field {field!r} is not valid JSON: {reason}.", "not_json") from None


def _explained(parameters: _Parameters, field: str, data: dict[str, Any], error: BaseException) -> ParamsRefused:
    """Return the refusal of this object, which the struct does not allow. Changes `data`."""
    declared = parameters.declared
    place = _located(parameters, data, error)
    what, steps = place.what, place.steps
    path = field + _path(steps)
    part, value = param_types.part_at(declared, data, steps), param_types.value_at(data, steps)
    if place.is_key:
        expected = next(
            (
                param_types.described(each.key_type)
                for each in param_types.options(param_types.part_at(declared, data, steps[:-1]) or declared)
                if isinstance(each, inspect.DictType)
            ),
            "",
        )
        return _refused(path, f"has a key that is not allowed: it must be {expected}" if expected else _invalid(what))
    quoted = _QUOTED.search(what)
    if quoted and what.startswith("Object missing required field"):
        expected = param_types.described(param_types.part_at(declared, data, [*steps, quoted[1]]))
        return _refused(f"{path}.{quoted[1]}", f"is missing; it must be {expected}" if expected else "is missing")
    if quoted and what.startswith("Object contains unknown field"):
        return _unknown(field, declared, data, steps, quoted[1])
    allowed = param_types.allowed(part)
    if isinstance(error, msgspec.ValidationError) and allowed and kind(value) not in allowed:
        return _refused(path, f"must be {' or '.join(allowed)}, not {shown(value)}")
    return _refused(path, _invalid(what))


class _Place(NamedTuple):
    """What an error says, and where. is_key: it is about the last step itself, and not about the value there."""

    what: str
    steps: list[Step]
    is_key: bool


def _located(parameters: _Parameters, data: dict[str, Any], error: BaseException) -> _Place:
    """Return the place of the error. Removes other keys from the objects on the way whose keys are free."""
    while True:
        text = _text_of(error)
        found = _AT.fullmatch(text) if isinstance(error, msgspec.ValidationError) else None
        if found is None:
            name = "" if isinstance(error, msgspec.ValidationError) else f"{type(error).__name__}: "
            return _Place((name + text).removesuffix(": "), [], False)
        steps, rest = _steps(found[3] + (_ANY_KEY if found[2] else ""), data)
        if not rest:
            return _Place(found[1], steps, found[2] is not None)
        alone = _error_with_one_key(parameters, data, param_types.value_at(data, steps))
        if alone is None:
            return _Place(found[1], steps, False)
        error = alone


def _error_with_one_key(parameters: _Parameters, data: dict[str, Any], within: Any) -> BaseException | None:
    """Leave only the first faulty item in `within`, an object in `data`. Return the error then, None without one."""
    if not isinstance(within, dict):
        return None
    items, error = list(within.items()), None
    while len(items) > 1:
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            within.clear()
            within.update(half)
            try:
                parameters.decode(json.dumps(data))
            except (Exception, SystemExit) as raised:
                items, error = half, raised
                break
        else:
            return None
    return error


def _steps(path: str, data: Any) -> tuple[list[Step], str]:
    """Split a path of msgspec. Returns the steps, and what is left: from the first key on that it leaves open."""
    steps: list[Step] = []
    while path:
        if path.startswith(_ANY_KEY):
            if not isinstance(data, dict) or len(data) != 1:
                break
            step: Step = str(next(iter(data)))
            path = path[len(_ANY_KEY) :]
        else:
            # A field's name may have dots and brackets.
            names = [key for key in data if _begins(path, key)] if isinstance(data, dict) else []
            found = _STEP.match(path)
            if names:
                name = max(names, key=len)
                step, path = name, path[len(name) + 1 :]
            elif found is not None:
                step = found[1] or int(found[2])
                path = path[found.end() :]
            else:
                break
        steps.append(step)
        data = param_types.value_at(data, [step])
    return steps, path


def _begins(path: str, key: str) -> bool:
    return path.startswith(f".{key}") and path[len(key) + 1 : len(key) + 2] in {"", ".", "["}


def _path(steps: Sequence[Step]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{printable(step)}" for step in steps)


def _invalid(what: str) -> str:
    first = what.partition(" ")[0]
    return f"is invalid: {what[:1].lower() if first.istitle() and first != what else what[:1]}{what[1:]}"


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # an error's own __str__ may raise anything
        return ""
    return printable(text, len(text))


def _refused(field: str, what: str) -> ParamsRefused:
    shown_field = printable(field, _MAX_FIELD_LENGTH)
    return ParamsRefused(shown_field, f"The field {shown_field!r} {printable(what, _MAX_FIELD_LENGTH)}.")


def _unknown(field: str, declared: inspect.Type, data: Any, steps: Sequence[Step], key: str) -> ParamsRefused:
    names = param_types.field_names(param_types.part_at(declared, data, steps), param_types.value_at(data, steps))
    path = printable(f"{field}{_path(steps)}.{printable(key)}", _MAX_FIELD_LENGTH)
    allowed = f"the fields are {', '.join(map(repr, names))}" if names else "the object has no fields"
    return ParamsRefused(path, f"There is no field {path!r}; {allowed[:_MAX_FIELD_LENGTH]}.")


def _too_large(field: str, size: int) -> ParamsRefused:
    sentence = f"The field {field!r} has {size} bytes; at most {MAX_BYTES} are allowed."
    return ParamsRefused(field, sentence, "too_large")


def _too_deep(field: str) -> ParamsRefused:
    sentence = f"The field {field!r} is nested too deeply: {json_values.MAX_DEPTH} levels are allowed."
    return ParamsRefused(field, sentence, "not_json")


def _number(digits: str) -> int | float:
    # To a JSON schema 2.0 and 1e3 are integers, and some encoders write every number like this.
    value = float(digits)
    return int(value) if abs(value) < _EXACT and value.is_integer() else value


def _integer(digits: str) -> int:
    # int() takes quadratic time for, and then refuses, one of more than 4,300 digits.
    return int(digits) if len(digits) < 100 else 10**100


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
