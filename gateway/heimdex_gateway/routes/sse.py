"""Server-sent events: content negotiation, the encoding of events, and a response that closes their source."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
from litestar.datastructures.headers import Accept
from litestar.response import Stream
from litestar.types import Receive, Scope, Send

from heimdex_contracts.job_object import moment
from heimdex_contracts.messages import Progress
from heimdex_gateway.jobs.history import Live
from heimdex_gateway.schemas.events import event_object

_json: Final = msgspec.json.Encoder()
EVENT_STREAM: Final = "text/event-stream"
_REFUSED: Final = re.compile(r";\s*q\s*=\s*0(\.0*)?\s*(;|$)", re.IGNORECASE)


def prefers_event_stream(accept: str) -> bool:
    """Whether this `Accept` header prefers text/event-stream to JSON."""
    accepted: list[str] = []
    for part in accept.split(","):
        # q=0 means "not acceptable"; the framework takes it for the lowest preference.
        if not _REFUSED.search(part):
            accepted.append(part)
        elif part.partition(";")[0].strip().lower() == EVENT_STREAM:
            return False
    return Accept(",".join(accepted)).best_match(["application/json", EVENT_STREAM]) == EVENT_STREAM


async def frames(entries: Live) -> AsyncIterator[bytes]:
    """Encode the entries as server-sent events, in order. None becomes a comment, which keeps the connection alive."""
    yield b"retry: 1000\n\n"
    async for entry in entries:
        if entry is None:
            yield b": still here\n\n"
        elif isinstance(entry, Progress):
            yield b"event: progress\ndata: %s\n\n" % _json.encode(
                {"stage": entry.stage, "attempt": entry.attempt, "progress": entry.progress, "at": moment(entry.at)}
            )
        else:
            event = event_object(entry)
            yield b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.event.encode(), _json.encode(event))


class EventStream(Stream):
    """A response of server-sent events. It closes `source` at the end, even if the client left before it started."""

    def __init__(self, chunks: AsyncIterator[bytes], source: AsyncExitStack) -> None:
        super().__init__(
            chunks, media_type=EVENT_STREAM, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._source = source

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Build the ASGI application that sends the response. The framework calls this, and awaits the result."""
        respond = super().to_asgi_response(*args, **kwargs)

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            async with self._source:
                await respond(scope, receive, send)

        return call
