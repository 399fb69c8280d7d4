"""Validates the two callback settings: the signing secret, and the private receivers that callbacks may reach."""

import base64
import binascii
import re
from ipaddress import ip_network
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # Standard Webhooks' prefix, which people and secret scanners recognize
#: Random bytes after the prefix, as Standard Webhooks requires.
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64

#: A host name without a trailing dot. Its last label starts with a letter, so that no number passes for a name.
_NAME: Final = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9_-]{0,61}[a-z0-9_])?")


def is_secret(text: str) -> bool:
    """Return whether `text` is `whsec_` followed by the base64 of 24 to 64 bytes."""
    if not text.startswith(SECRET_PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES


def is_host_name(text: str) -> bool:
    """Return whether `text`, in lower case, is a name to resolve rather than an address in any notation."""
    return _NAME.fullmatch(text) is not None


def is_allowance(text: str) -> bool:
    """Return whether `text` is a host name, an address, or a network in CIDR notation."""
    try:
        ip_network(text)
    except ValueError:
        return is_host_name(text.lower())
    return True
