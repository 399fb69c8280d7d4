"""Makes a key for the API: what its holder sends, and what the gateway is told, which is not the key."""

import hashlib
import re
import secrets

from heimdex_cli.errors import Unusable

#: As the gateway takes it.
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: So that a person, or a tool that looks for secrets, knows one that lies about.
_PREFIX = "heimdex_"
_BYTES = 32


def new_key(tenant: str) -> tuple[str, str]:
    """A key of 256 random bits, and its entry for HEIMDEX_API_KEYS. Raises Unusable for what is no tenant's name."""
    if not _TENANT.fullmatch(tenant):
        raise Unusable(
            f"{tenant[:80]!r} is no name of a tenant: it has 1 to 64 letters, digits, dots, hyphens and underscores, "
            "and begins with a letter or a digit."
        )
    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    return key, f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}"
