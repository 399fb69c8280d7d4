"""Authentication with API keys. A key belongs to a tenant, and a tenant can access only its own jobs.

The gateway knows only the SHA-256 digest of a key. Keys are long and random, so a key cannot be guessed from its
digest, and the time of a look-up in a table of digests reveals nothing about a key.
"""

import hashlib
import sys
from collections.abc import Sequence
from typing import Final

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from heimdex_gateway.middleware.open_routes import is_open
from heimdex_gateway.problem import Problem

_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
_SCHEME: Final = b"bearer "


class Keys:
    """The API keys that this gateway accepts, from the entries of HEIMDEX_API_KEYS."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._tenants: dict[str, str] = {}
        for entry in entries:
            tenant, _, digest = entry.partition(":")
            # Interned: the default tenant is then the identical object to the default of the message field, and the
            # encoder omits it.
            self._tenants[digest.lower()] = sys.intern(tenant)

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def owner(self, authorization: bytes) -> tuple[str, str]:
        """The tenant and the digest of the key in this Authorization header. Empty: the header is missing.

        Raises Problem 401 if the header is missing or malformed, or the key is unknown.
        """
        if not authorization:
            raise Problem(401, "Missing API key: send 'Authorization: Bearer <key>'.", _CHALLENGE)
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Problem(401, "The Authorization header must be 'Bearer <key>'.", _CHALLENGE)
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip()).hexdigest()
        tenant = self._tenants.get(digest)
        if tenant is None:
            raise Problem(401, "The API key is not known: ask the operator for a valid one.", _CHALLENGE)
        return tenant, digest


class Authenticating(ASGIMiddleware):
    """Rejects requests without a valid key. Sets `request.user` to the tenant, `request.auth` to the key's digest."""

    scopes = (ScopeType.HTTP,)
    should_bypass_for_scope = staticmethod(is_open)

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Authenticate one request. Raises Problem 401."""
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scope["user"], scope["auth"] = self._keys.owner(authorization)
        await next_app(scope, receive, send)
