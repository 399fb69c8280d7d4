"""Who asks: a key belongs to a tenant, and a tenant sees its own jobs only.

Of a key only the SHA-256 is known here. Keys are long and random, so that nobody can guess one from its digest, and
the time that a look into a table of digests takes tells nothing of a key.
"""

import hashlib
import sys
from collections.abc import Sequence
from typing import Final

from litestar.enums import HttpMethod, ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from heimdex_gateway.errors import Problem

#: Put on a handler that everybody may ask: it says nothing of any job.
OPEN: Final = "open_to_all"
#: The document and its page are the framework's handlers, which cannot be marked.
_SCHEMA: Final = "/schema"
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
_SCHEME: Final = b"bearer "


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

    def owner(self, authorization: bytes) -> tuple[str, str]:
        """Tenant and digest of the key in this Authorization header (empty: there is none). Raises Problem 401."""
        if not authorization:
            raise Problem(401, "This gateway wants a key: send it as 'Authorization: Bearer <key>'.", _CHALLENGE)
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Problem(401, "The Authorization header must be 'Bearer <key>'.", _CHALLENGE)
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip()).hexdigest()
        tenant = self._tenants.get(digest)
        if tenant is None:
            raise Problem(401, "The key is not known here: ask the operator for one that is.", _CHALLENGE)
        return tenant, digest


def is_open(scope: Scope) -> bool:
    """Whether everybody may ask this. Whatever is not said to be open is not."""
    return bool(
        scope["route_handler"].opt.get(OPEN)
        or scope["path"] == _SCHEMA
        or scope["path"].startswith(f"{_SCHEMA}/")
        or scope.get("method") == HttpMethod.OPTIONS
    )


class Authenticating(ASGIMiddleware):
    """Lets nobody through without a key; `request.user` is then the tenant, `request.auth` the digest of the key."""

    scopes = (ScopeType.HTTP,)
    should_bypass_for_scope = staticmethod(is_open)

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Raises Problem 401."""
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scope["user"], scope["auth"] = self._keys.owner(sent)
        await next_app(scope, receive, send)
