"""Which fields of a message are the job's own: given when it is submitted, and the same in every message of the job.

A message type marks them with `OfJob`. Whoever writes the message that follows another takes them over whole with
`spec_of`, so that a field that is added is lost by no transition.
"""

from functools import cache
from typing import Annotated, Any, Final, TypeVar, get_args, get_type_hints

import msgspec

_T = TypeVar("_T")
_MARK: Final = "of the job"

#: A field that stays the same for the whole life of a job. Marks, and no base class: fields of a base class would come
#: first in the JSON of every message, and releases are compared byte for byte.
OfJob = Annotated[_T, _MARK]


@cache
def spec_fields(message_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """The names of the marked fields, in the order of the JSON."""
    hints = get_type_hints(message_type, include_extras=True)
    return tuple(name for name in message_type.__struct_fields__ if _MARK in get_args(hints[name])[1:])


def spec_of(message: msgspec.Struct, into: type[msgspec.Struct]) -> dict[str, Any]:
    """The job's own fields of this message, as arguments for a message of the type `into` of the same job."""
    return {name: getattr(message, name) for name in spec_fields(into)}
