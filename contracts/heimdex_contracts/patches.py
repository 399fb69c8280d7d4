"""Builds the successor of a stored message from its JSON, for a process that does not write all of a job's fields.

The message may be of a newer release. Its unknown fields, also those within a field, are the job's: a retry needs them.
So the stored JSON is patched: what the successor changes is replaced, and everything else stays byte for byte. Pure.
"""

from typing import Final

import msgspec

from heimdex_contracts import messages
from heimdex_contracts.errors import UnusableMessage
from heimdex_contracts.messages import NOTHING, AnyJobMessage

_PARAMS: Final = "params"
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any: Final = msgspec.json.Decoder()


def patched(successor: AnyJobMessage, last: AnyJobMessage, stored: bytes) -> bytes:
    """Encode `successor` as `stored` with the fields that differ from `last`, which is the decoded `stored`."""
    fields = _fields.decode(stored)
    for name in last.__struct_fields__:
        if not (name in successor.__struct_fields__ and getattr(successor, name) == getattr(last, name)):
            fields.pop(name, None)
    encoded = _fields.decode(messages.encode(successor))
    tag = successor.__struct_config__.tag_field or ""
    return msgspec.json.encode({**encoded, **fields, tag: encoded[tag]})


def whole(message: str, params: str | None) -> bytes:
    """Return the message of a row of Postgres as it was on HEIMDEX_JOBS: the column `message` has no `params`.

    message, params: the columns, as JSON. params: None for a job without, and for a row of a store that did not
    separate them. Raises UnusableMessage if the message is not an object.
    """
    if params is None:
        return message.encode()
    fields = messages.decode(_fields, message.encode())
    fields[_PARAMS] = msgspec.Raw(params.encode())
    return msgspec.json.encode(fields)


def to_keep(message: AnyJobMessage, payload: bytes) -> bytes:
    """Return the JSON to keep of a message that arrived as `payload`: with its unknown fields, if they are valid JSON.

    The parameters are left out: they have a column of their own, which is written once (`whole` adds them again).
    Decoding skips unknown fields without validating them. Postgres could not query into an invalid one.
    """
    encoded = messages.encode(message)
    alone = messages.encode(msgspec.structs.replace(message, params=NOTHING)) if message.params else encoded
    if payload == encoded:
        return alone
    try:
        messages.decode(_any, payload)
    except UnusableMessage:
        return alone
    if not message.params:
        return payload
    fields = _fields.decode(payload)
    del fields[_PARAMS]
    return msgspec.json.encode(fields)
