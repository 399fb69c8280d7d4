"""CORS: the framework's own, with the configured origins, and with JSON errors that explain a refused preflight."""

from collections.abc import Sequence
from typing import Final

import msgspec
from litestar.config.cors import CORSConfig
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from heimdex_gateway.middleware import rate_limit

#: Request headers that a page may send in addition to those that CORS always allows.
SENT: Final = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "traceparent")
#: Response headers that a page may read in addition to those that CORS always allows.
READ: Final = ("Location", "Retry-After", "WWW-Authenticate", *rate_limit.HEADERS)


def config(origins: Sequence[str]) -> CORSConfig | None:
    """The CORS configuration of the application. None: no page of another origin may use the API."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=list(SENT),
        expose_headers=list(READ),
    )


def explained(app: ASGIApp) -> ASGIApp:
    """Wrap the application so that a refused preflight gets a JSON error, like every other error.

    The framework itself responds with plain text.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] != HttpMethod.OPTIONS:
            await app(scope, receive, send)
            return
        refused = False

        async def explain(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 400:
                refused = True
                body = _body(dict(scope["headers"]))
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                await send({**message, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})
            elif not refused:
                await send(message)

        await app(scope, receive, explain)

    return call


def _body(headers: dict[bytes, bytes]) -> bytes:
    def shown(name: bytes) -> str:
        return headers.get(name, b"").decode(errors="replace")[:100]

    detail = (
        f"CORS does not allow {shown(b'access-control-request-method') or 'this'!r} from {shown(b'origin')!r} "
        f"with these headers. Allowed origins: HEIMDEX_CORS_ORIGINS; methods: GET, POST; headers: {', '.join(SENT)}."
    )
    return msgspec.json.encode({"detail": detail})
