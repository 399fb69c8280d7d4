"""What the two settings of callbacks may be: the secret that signs them, and who may be called although private."""

import base64
import binascii
import re
from ipaddress import ip_network
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # of Standard Webhooks, as a hint for people and for scanners
#: Of random bytes behind the prefix, as Standard Webhooks demands.
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64

#: A host name without the dot at its end. Its last label has a letter first, so that no number can be taken for a name.
_NAME: Final = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9_-]{0,61}[a-z0-9_])?")


def is_secret(text: str) -> bool:
    """`whsec_` and the base64 of 24 to 64 bytes."""
    if not text.startswith(SECRET_PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES


def is_host_name(text: str) -> bool:
    """A name to look up, in lower case; no address, however it is written."""
    return _NAME.fullmatch(text) is not None


def is_allowance(text: str) -> bool:
    """A host name, an address, or a network in CIDR notation."""
    try:
        ip_network(text)
    except ValueError:
        return is_host_name(text.lower())
    return True
