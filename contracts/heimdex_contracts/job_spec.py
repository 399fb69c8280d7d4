"""Marks the fields of a message that belong to the job: set at submission and identical in all messages of the job.

A message type marks these fields with `OfJob`. Every transition copies them all into the next message with `spec_of`,
so no transition can lose a field that is added later.
"""

from functools import cache
from typing import Annotated, Any, Final, TypeVar, get_args, get_type_hints

import msgspec

_T = TypeVar("_T")
_MARK: Final = "of the job"

#: A field that stays the same for the whole life of a job. It is an annotation rather than a base class: the fields of
#: a base class would come first in the JSON of every message, and the JSON of releases is compared byte for byte.
OfJob = Annotated[_T, _MARK]


@cache
def spec_fields(message_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the names of the marked fields, in the order of the JSON."""
    hints = get_type_hints(message_type, include_extras=True)
    return tuple(name for name in message_type.__struct_fields__ if _MARK in get_args(hints[name])[1:])


def spec_of(message: msgspec.Struct, into: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the job's fields of this message, as keyword arguments for a message of type `into` of the same job."""
    return {name: getattr(message, name) for name in spec_fields(into)}
