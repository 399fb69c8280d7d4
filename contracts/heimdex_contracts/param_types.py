"""Reads the declared type of parameters beside their value: which part an error is about, and what that part allows.

The types are those of `msgspec.inspect`. Pure.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from types import UnionType
from typing import Any, Final

import msgspec
from msgspec import inspect

Step = str | int

_OBJECTS: Final = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)
_MOMENT: Final = "2026-01-31T12:00:00"
_WORDS: Final[dict[type[inspect.Type], str]] = {
    inspect.NoneType: "null",
    inspect.BoolType: "true or false",
    inspect.BytesType: "a string in base64",
    inspect.ByteArrayType: "a string in base64",
    inspect.MemoryViewType: "a string in base64",
    inspect.DateType: "a date such as '2026-01-31'",
    inspect.TimeDeltaType: "a duration such as 'PT90S'",
    inspect.UUIDType: "a UUID",
    inspect.DecimalType: "a decimal number",
}


@cache
def declared_by(struct: type[msgspec.Struct]) -> inspect.Type:
    """Return the declared type of these parameters."""
    return inspect.type_info(struct)


def objects_in(struct: type[msgspec.Struct]) -> tuple[inspect.Type, ...]:
    """Return this struct, then all types with fields of their own that it holds, at any depth."""
    return tuple(each for each in _parts(declared_by(struct)) if isinstance(each, _OBJECTS))


def structs_in(struct: type[msgspec.Struct]) -> tuple[type[msgspec.Struct], ...]:
    """Return this struct, then all structs that it holds, at any depth."""
    return tuple(each.cls for each in objects_in(struct) if isinstance(each, inspect.StructType))


def holds(struct: type[msgspec.Struct], kind: type[inspect.Type] | UnionType) -> bool:
    """Return whether a value of this struct may hold one of this type, at any depth."""
    return any(isinstance(each, kind) for each in _parts(declared_by(struct)))


def _parts(declared: inspect.Type) -> Iterator[inspect.Type]:
    waiting, seen = [declared], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        match part:
            case inspect.UnionType():
                waiting += part.types
            case inspect.Metadata():
                waiting.append(part.type)
            case inspect.DictType():
                waiting += (part.key_type, part.value_type)
            case inspect.CollectionType():
                waiting.append(part.item_type)
            case inspect.TupleType():
                waiting += part.item_types
            case _:
                waiting += [field.type for field in _fields(part)]


def options(declared: inspect.Type, value: Any = None) -> list[inspect.Type]:
    """Return the alternatives of a type. value: leaves only those structs of a union whose tag it has, if there are."""
    if isinstance(declared, inspect.Metadata):
        return options(declared.type, value)
    if not isinstance(declared, inspect.UnionType):
        return [declared]
    parts = [option for each in declared.types for option in options(each)]
    tagged = [part for part in parts if isinstance(part, inspect.StructType) and part.tag_field]
    chosen = [part for part in tagged if isinstance(value, dict) and value.get(part.tag_field) == part.tag]
    return [*chosen, *(part for part in parts if part not in tagged)] if chosen else parts


def field_names(declared: inspect.Type | None, value: Any) -> list[str]:
    """Return the names of the fields that an object of this type may have, with the field that is its tag."""
    names: dict[str, None] = {}
    for option in options(declared, value) if declared else ():
        if isinstance(option, inspect.StructType) and option.tag_field:
            names[option.tag_field] = None
        names.update(dict.fromkeys(field.encode_name for field in _fields(option)))
    return list(names)


def part_at(declared: inspect.Type, value: Any, steps: Sequence[Step]) -> inspect.Type | None:
    """Return the type of the part at this path, None if it is unknown. value: the whole value."""
    part: inspect.Type | None = declared
    for step in steps:
        part = None if part is None else _inner(part, value, step)
        value = value_at(value, [step])
    return part


def value_at(value: Any, steps: Sequence[Step]) -> Any:
    """Return the part of the value at this path, None where there is none."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _inner(declared: inspect.Type, value: Any, step: Step) -> inspect.Type | None:
    tags = []
    for option in options(declared, value):
        if isinstance(step, int):
            items: Sequence[inspect.Type] = ()
            match option:
                case inspect.CollectionType():
                    return option.item_type
                case inspect.TupleType():
                    items = option.item_types
                case _:
                    items = [field.type for field in _fields(option)]
            if step < len(items):
                return items[step]
            continue
        if isinstance(option, inspect.DictType):
            return option.value_type
        for field in _fields(option):
            if field.encode_name == step:
                return field.type
        if isinstance(option, inspect.StructType) and option.tag_field == step:
            tags.append(option.tag)
    return inspect.LiteralType(tuple(tags)) if tags else None


def _fields(declared: inspect.Type) -> tuple[inspect.Field, ...]:
    return getattr(declared, "fields", ())


def unknown_field(declared: inspect.Type, value: Any) -> list[Step] | None:
    """Return the path of the first key that the type does not have, also where decoding ignores it."""
    waiting: list[tuple[inspect.Type, Any, list[Step]]] = [(declared, value, [])]
    while waiting:
        part, held, path = waiting.pop()
        if isinstance(held, list):
            items: list[tuple[Step, Any]] = list(enumerate(held))
        elif isinstance(held, dict):
            items = list(held.items())
            if any(isinstance(each, _OBJECTS) for each in options(part, held)):
                known = field_names(part, held)
                for key in held:
                    if key not in known:
                        return [*path, key]
        else:
            continue
        for step, item in reversed(items):
            inner = _inner(part, held, step) if isinstance(item, (dict, list)) else None
            if inner is not None:
                waiting.append((inner, item, [*path, step]))
    return None


def described(declared: inspect.Type | None) -> str:
    """Return what the type allows, such as `a string`, `an integer from 1 to 9`; empty if that is unknown."""
    return " or ".join(allowed(declared))


def allowed(declared: inspect.Type | None) -> list[str]:
    """Return the alternatives of `described`; an empty list if one of them is unknown."""
    parts = [_described(option) for option in options(declared)] if declared else []
    return list(dict.fromkeys(parts)) if all(parts) else []


def _described(declared: inspect.Type) -> str:
    match declared:
        case inspect.LiteralType() | inspect.EnumType():
            values = (
                declared.values
                if isinstance(declared, inspect.LiteralType)
                else [member.value for member in declared.cls]
            )
            shown = ["null" if value is None else repr(value) for value in values]
            return f"one of {', '.join(shown)}" if len(shown) > 1 else "".join(shown)
        case inspect.StrType():
            words = "a string" + _length(declared, "character")
            return f"{words} that matches {declared.pattern}" if declared.pattern else words
        case inspect.IntType():
            return _number("an integer", declared)
        case inspect.FloatType():
            return _number("a number", declared)
        case inspect.DateTimeType() | inspect.TimeType():
            noun, example = (
                ("a date and time", _MOMENT) if isinstance(declared, inspect.DateTimeType) else ("a time", _MOMENT[11:])
            )
            zone = {True: " with its time zone", False: " without a time zone", None: ""}[declared.tz]
            return f"{noun}{zone} such as '{example}{'' if declared.tz is False else 'Z'}'"
        case inspect.TupleType():
            return f"an array of {_count(len(declared.item_types), 'item')}"
        case inspect.CollectionType():
            return "an array" + _length(declared, "item")
        case inspect.DictType():
            return "an object" + _length(declared, "field")
        case inspect.StructType() if declared.array_like:
            return "an array"
        case inspect.StructType() | inspect.DataclassType() | inspect.TypedDictType():
            return "an object"
        case inspect.NamedTupleType():
            return "an array"
    return _WORDS.get(type(declared), "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _length(declared: Any, noun: str) -> str:
    least, most = declared.min_length, declared.max_length
    if least == most:
        return "" if least is None else f" of {_count(least, noun)}"
    if least is None:
        return f" of at most {_count(most, noun)}"
    return f" of at least {_count(least, noun)}" if most is None else f" of {least} to {_count(most, noun)}"


def _number(noun: str, declared: inspect.IntType | inspect.FloatType) -> str:
    words = []
    if declared.ge is not None and declared.le is not None:
        words.append(f"from {_plain(declared.ge)} to {_plain(declared.le)}")
    else:
        limits = (
            ("at least", declared.ge),
            ("greater than", declared.gt),
            ("at most", declared.le),
            ("less than", declared.lt),
        )
        bounds = [f"{word} {_plain(limit)}" for word, limit in limits if limit is not None]
        if bounds:
            words.append("that is " + " and ".join(bounds))
    if declared.multiple_of is not None:
        words.append(f"that is a multiple of {_plain(declared.multiple_of)}")
    return " ".join([noun, " and ".join(words)]) if words else noun


def _plain(limit: float) -> str:
    return f"{limit:.15g}"
