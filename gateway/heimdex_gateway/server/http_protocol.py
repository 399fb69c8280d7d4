"""Holds a connection to its bounds while a request is read, and refuses in JSON what is none.

A head comes from anybody, before a key is asked for: it has a largest size, and a time by which it must have ended. A
body has its largest size from the framework; here it has to go on. A plain request, which comes in one piece, pays
for little: only what is unfinished after a read is counted and timed, by one timer a connection.
"""

import asyncio
import sys
from http import HTTPStatus
from typing import Any, Final, Literal

import httptools
import msgspec

from heimdex_gateway.server.write_coalescing import CoalescedWrites

#: How long what still comes is read after a refusal: closing on unread data would reset the connection, and the
#: refusal be lost.
LINGER_SECONDS: Final = 2.0


class BoundedHttpProtocol(CoalescedWrites):
    """The protocol of one connection."""

    #: Path and headers of a request; so much beside a chunked body too.
    head_bytes = 32 * 1024
    #: From a head's first byte to its last; also for the first byte of a new connection.
    head_seconds = 30.0
    #: Between two pieces of a body.
    body_seconds = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Bytes since the last that were a finished head, or of a body.
        self._unread = 0
        #: Since when the caller is waited for, None while it has nothing to finish; and in which request.
        self._since: float | None = None
        self._unfinished: object = None
        self._timer: asyncio.TimerHandle | None = None
        #: A refusal, while earlier requests of the connection are still being answered.
        self._pending_response = b""
        #: After a refusal nothing more is understood.
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        self._wait_for_caller()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._deaf:
            return
        self._unread += len(data)
        CoalescedWrites.data_received(self, data)
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or cycle.scope is not self.scope:
            self._left_unfinished()
        else:
            self._unread, self._since = 0, None

    def on_headers_complete(self) -> None:
        """Called by the parser. What it raises makes the parser give up."""
        if self._unread > self.head_bytes and self._head_size() > self.head_bytes:
            raise _HeadTooLarge
        CoalescedWrites.on_headers_complete(self)
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._unread = 0
        CoalescedWrites.on_body(self, body)

    def on_response_complete(self) -> None:
        """Called when an answer is complete."""
        CoalescedWrites.on_response_complete(self)
        if self._pending_response and not self.pipeline and not self.transport.is_closing():
            self._send_and_close(self._pending_response)

    def send_400_response(self, msg: str) -> None:
        """Called where the parser has given up."""
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, _HeadTooLarge):
            self._refuse_large()
        elif isinstance(cause, httptools.HttpParserInvalidURLError | UnicodeDecodeError):
            self._refuse(400, "The URL cannot be read: it must be ASCII, with all else percent-encoded.")
        else:
            self._refuse(400, f"The request is not valid HTTP: {str(cause).strip(' .') or msg}.")

    # ---------------------------------------------------------------------------------------------------------

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _reading(self) -> Literal["nothing", "head", "body"]:
        """What the next byte belongs to. (Of a body whose answer did not wait for it, the end is not noticed.)"""
        cycle = self.cycle
        if self.scope is not None and (cycle is None or cycle.scope is not self.scope):
            return "head"
        return "body" if cycle is not None and cycle.more_body else "nothing"

    def _left_unfinished(self) -> None:
        if self._deaf:
            return
        if self._unread > self.head_bytes:
            self._refuse_large()
        elif self._since is None or self._unfinished is not self.scope or self._reading() == "body":
            self._wait_for_caller()

    def _wait_for_caller(self) -> None:
        self._since, self._unfinished = self.loop.time(), self.scope
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._look)

    def _look(self) -> None:
        """Is what is waited for overdue? The timer is not moved with each read, but looks again when it has to."""
        self._timer = None
        if self._since is None or self._deaf:
            return
        now = self.loop.time()
        if self.flow.read_paused:
            self._since = now  # it is we who do not read
        reading = self._reading()
        left = self._since + (self.body_seconds if reading == "body" else self.head_seconds) - now
        if left > 0:
            self._timer = self.loop.call_later(min(left, self.head_seconds), self._look)
        elif reading == "body":
            self._refuse(408, f"Nothing more of the body came for {self.body_seconds:g} s. Send the request again.")
        elif reading == "head":
            self._refuse(408, f"The head did not end within {self.head_seconds:g} s. Send the request again.")
        else:
            self.transport.close()  # nothing was asked

    def _refuse_large(self) -> None:
        self._refuse(431, f"The path and the headers together are over {self.head_bytes // 1024} KiB.")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer so where an answer is possible, and read nothing more of this connection."""
        if self.transport.is_closing():
            return
        self._deaf, self._since = True, None
        words = _answer(status, detail)
        cycle = self.cycle
        if self._reading() != "body":
            if cycle is None or cycle.response_complete:
                self._send_and_close(words)
            else:
                self._pending_response = words
        elif self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # its turn had not come
            self._pending_response = words
        elif cycle.response_started:
            self.transport.close()
        else:
            cycle.disconnected = True  # from now on it is told that nobody listens
            cycle.message_event.set()
            self._send_and_close(words)

    def _send_and_close(self, words: bytes) -> None:
        self._unset_keepalive_if_required()
        self.transport.write(words)
        self.transport.write_eof()
        self.flow.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)


class _HeadTooLarge(Exception):
    """Told to the parser, which gives up."""


def _answer(status: int, detail: str) -> bytes:
    body = msgspec.json.encode({"detail": detail})
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
