"""Query parameters and headers that the routes read themselves."""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from heimdex_contracts.job_object import INCLUDED
from heimdex_gateway.problem import Problem

MAX_WAIT_SECONDS: Final = 300.0


def wait_seconds(text: str | None) -> float:
    """Parse the parameter `wait`, in seconds; 0 if it is absent. Raises Problem 422."""
    if text is None:
        return 0.0
    try:
        value = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_WAIT_SECONDS:
        raise Problem(
            422,
            f"The parameter 'wait' must be a number of seconds from 0 to {MAX_WAIT_SECONDS:g}, not {text[:60]!r}.",
            field="wait",
        )
    return value


def include(text: str | None) -> tuple[str, ...]:
    """Parse the parameter `include`: words separated by commas; none if it is absent. Raises Problem 422."""
    if text is None:
        return ()
    words = tuple(text.split(","))
    allowed = " and ".join(map(repr, INCLUDED))
    for word in words:
        if word not in INCLUDED:
            raise Problem(
                422,
                f"The parameter 'include' takes {allowed}, separated by a comma, not {word[:60]!r}.",
                field="include",
            )
    if len(set(words)) != len(words):
        raise Problem(422, "The parameter 'include' repeats a word; name each once.", field="include")
    return words


MAX_KEY_LENGTH: Final = 255


_QUOTED: Final = re.compile(r'"((?:[^"\\\x00-\x1f\x7f]|\\["\\])*)"')


_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entries: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_BARE: Final = re.compile(r"[\x21\x23-\x7e][\x20-\x7e]*")


def read_key(headers: Sequence[str]) -> str:
    """Parse the request's Idempotency-Key headers and return the key: quoted, as in the IETF draft, or bare.

    Raises Problem 422 if the header is repeated or its value is not a key.
    """
    if len(headers) != 1:
        raise Problem(422, "The header 'Idempotency-Key' is repeated; send it once.", field="Idempotency-Key")
    text = headers[0].strip()
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text if _BARE.fullmatch(text) else ""
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise Problem(
            422,
            f"The header 'Idempotency-Key' must contain 1 to {MAX_KEY_LENGTH} printable characters, quoted or bare.",
            field="Idempotency-Key",
        )
    return key


def digest(body: bytes, params: Sequence[msgspec.Raw]) -> str:
    """Return a digest of a JSON body that does not depend on whitespace or on the order of keys.

    params: those of each of its jobs, encoded again. They take the place of what was sent: an omitted default and the
    same default are one request.
    """
    fields = _fields.decode(body)
    entries = _entries.decode(fields["jobs"]) if "jobs" in fields else [fields]
    for entry, encoded in zip(entries, params, strict=True):
        entry.pop("params", None)
        if encoded:
            entry["params"] = encoded
    whole = {"jobs": entries} if "jobs" in fields else fields
    plain = msgspec.json.decode(msgspec.json.encode(whole))
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
