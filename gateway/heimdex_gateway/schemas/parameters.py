"""Query parameters and headers that the routes read themselves."""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

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


MAX_KEY_LENGTH: Final = 255


_QUOTED: Final = re.compile(r'"((?:[^"\\\x00-\x1f\x7f]|\\["\\])*)"')


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


def digest(body: bytes) -> str:
    """Return a digest of a JSON body that does not depend on whitespace or on the order of keys."""
    return hashlib.sha256(msgspec.json.encode(msgspec.json.decode(body), order="sorted")).hexdigest()
