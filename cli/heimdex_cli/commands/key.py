"""Creates an API key: the secret that the client sends, and the entry for the gateway, which has only its hash."""

import hashlib
import re
import secrets

from heimdex_cli.errors import Unusable

#: The tenant names that the gateway accepts.
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Lets a person, or a secret scanner, recognize a leaked key.
_PREFIX = "heimdex_"
_BYTES = 32


def new_key(tenant: str) -> tuple[str, str]:
    """Return a key of 256 random bits and its entry for HEIMDEX_API_KEYS, `<tenant>:<SHA-256 of the key>`.

    Raises Unusable when the tenant's name is invalid.
    """
    if not _TENANT.fullmatch(tenant):
        raise Unusable(
            f"{tenant[:80]!r} is not a valid tenant name: use 1 to 64 letters, digits, dots, hyphens and underscores, "
            "and begin with a letter or a digit."
        )
    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    return key, f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}"
