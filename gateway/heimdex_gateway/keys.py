"""Who asks: a key belongs to a tenant, and a tenant sees its own jobs only.

Of a key only the SHA-256 is known here. Keys are long and random, so that nobody can guess one from its digest, and
the time that a look into a table of digests takes tells nothing of a key.
"""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.middleware.authentication import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.middleware.base import DefineMiddleware

from heimdex_gateway.problems import Problem

#: Put on a handler that everybody may ask: it says nothing of any job.
OPEN: Final = "open_to_all"
#: The document and its page are the framework's handlers, which cannot be marked.
OPEN_PATHS: Final = r"^/schema(/|$)"
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
_SCHEME: Final = "bearer "


class Keys:
    """The keys of this gateway, from the entries of HEIMDEX_API_KEYS."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._tenants: dict[str, str] = {}
        for entry in entries:
            tenant, _, digest = entry.partition(":")
            # Interned, it is the very default of the messages where it equals that, and is left out of them.
            self._tenants[digest.lower()] = sys.intern(tenant)

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def owner(self, authorization: str) -> tuple[str, str]:
        """Tenant and digest of the key in this Authorization header ("" for none). Raises Problem 401."""
        if not authorization:
            raise Problem(401, "This gateway wants a key: send it as 'Authorization: Bearer <key>'.", _CHALLENGE)
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Problem(401, "The Authorization header must be 'Bearer <key>'.", _CHALLENGE)
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip().encode()).hexdigest()
        tenant = self._tenants.get(digest)
        if tenant is None:
            raise Problem(401, "The key is not known here: ask the operator for one that is.", _CHALLENGE)
        return tenant, digest


class KeyAuthentication(AbstractAuthenticationMiddleware):
    """Lets nobody through without a key; `request.user` is then the tenant, `request.auth` the digest of the key."""

    def __init__(self, app: Any, keys: Keys, **kwargs: Any) -> None:
        super().__init__(app, exclude=OPEN_PATHS, exclude_from_auth_key=OPEN, **kwargs)
        self._keys = keys

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Raises Problem 401."""
        tenant, digest = self._keys.owner(connection.headers.get("authorization", ""))
        return AuthenticationResult(user=tenant, auth=digest)


def authenticating(keys: Keys) -> DefineMiddleware:
    """For the application's middleware."""
    return DefineMiddleware(KeyAuthentication, keys=keys)
