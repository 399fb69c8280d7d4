"""The answer that goes on: who wants it, and how it ends what it is told from."""

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


def is_wanted(accept: str) -> bool:
    """Whether the caller would rather have the stream than JSON."""
    wanted: list[str] = []
    for part in accept.split(","):
        # The framework takes q=0, which says "not this", for the least of wishes.
        if not _REFUSED.search(part):
            wanted.append(part)
        elif part.partition(";")[0].strip().lower() == EVENT_STREAM:
            return False
    return Accept(",".join(wanted)).best_match(["application/json", EVENT_STREAM]) == EVENT_STREAM


async def frames(entries: Live) -> AsyncIterator[bytes]:
    """The stream's bytes, in the order of its entries; a comment where there is nothing to send."""
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
    """Server-sent events. Closes `source` when it has ended, also where the caller had gone before it began."""

    def __init__(self, pieces: AsyncIterator[bytes], source: AsyncExitStack) -> None:
        super().__init__(
            pieces, media_type=EVENT_STREAM, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._source = source

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Called by the framework, which then awaits what is returned."""
        respond = super().to_asgi_response(*args, **kwargs)

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            async with self._source:
                await respond(scope, receive, send)

        return call
