"""Whose pages in a browser may use this API: the framework's CORS, with our origins, and refusals that say why."""

from collections.abc import Sequence
from typing import Final

import msgspec
from litestar.config.cors import CORSConfig
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from heimdex_gateway.middleware import rate_limit

#: What a page may send beside what every page may.
SENT: Final = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "traceparent")
#: What a page may read of an answer beside its body.
READ: Final = ("Location", "Retry-After", "WWW-Authenticate", *rate_limit.HEADERS)


def config(origins: Sequence[str]) -> CORSConfig | None:
    """For the application; None where no page may."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=list(SENT),
        expose_headers=list(READ),
    )


def explained(app: ASGIApp) -> ASGIApp:
    """Answers a refused preflight as every other error: the framework's own answer is plain text."""

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


def _body(asked: dict[bytes, bytes]) -> bytes:
    def shown(name: bytes) -> str:
        return asked.get(name, b"").decode(errors="replace")[:100]

    detail = (
        f"A page of {shown(b'origin')!r} may not ask for {shown(b'access-control-request-method') or 'this'!r} here "
        f"with these headers. Origins: HEIMDEX_CORS_ORIGINS; methods: GET, POST; headers: {', '.join(SENT)}."
    )
    return msgspec.json.encode({"detail": detail})
