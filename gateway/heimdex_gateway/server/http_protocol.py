"""Limits request-head size and read time, and answers malformed HTTP with a JSON error.

Anybody can send a request head, because it is read before the API key is checked. So a head has a maximum size and must
be complete within a time limit. The framework limits the size of a body; here a body must only keep arriving. A normal
request arrives in one piece and costs little extra: only a request that is incomplete after a read is counted and
timed, with one timer for each connection.
"""

import asyncio
import sys
from http import HTTPStatus
from typing import Any, Final, Literal

import httptools
import msgspec

from heimdex_gateway.server.write_coalescing import CoalescedWrites

#: Seconds for which the connection is still read after an error response. Closing it with unread data would reset the
#: connection, and the client would lose the response.
LINGER_SECONDS: Final = 2.0


class BoundedHttpProtocol(CoalescedWrites):
    """The protocol of one connection, with limits on request heads and on pauses within a request."""

    #: Maximum bytes of path and headers; also of the framing of a chunked body (chunk heads, extensions, trailers).
    head_bytes = 32 * 1024
    #: Seconds from the first byte of a head to its last; also from the start of a connection to its first byte.
    head_seconds = 30.0
    #: Seconds between two pieces of a body.
    body_seconds = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Bytes received since the end of the last complete head or the last piece of a body.
        self._unread = 0
        #: Event-loop time since which the server waits for the client; None: no request is incomplete.
        self._since: float | None = None
        #: The scope of the incomplete request.
        self._unfinished: object = None
        self._timer: asyncio.TimerHandle | None = None
        #: An error response that waits until earlier requests of the connection are answered.
        self._pending_response = b""
        #: After an error response, further data is read but not parsed.
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request. Called by the event loop."""
        super().connection_made(transport)
        self._wait_for_caller()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer. Called by the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, and limit a request that it leaves incomplete. Called by the event loop."""
        if self._refused:
            return
        self._unread += len(data)
        CoalescedWrites.data_received(self, data)
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or cycle.scope is not self.scope:
            self._on_incomplete()
        else:
            self._unread, self._since = 0, None

    def on_headers_complete(self) -> None:
        """Check the size of the head. Called by the parser, which stops at an exception raised here."""
        if self._unread > self.head_bytes and self._head_size() > self.head_bytes:
            raise _HeadTooLarge
        CoalescedWrites.on_headers_complete(self)
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        """Count the body as received. Called by the parser."""
        self._unread = 0
        CoalescedWrites.on_body(self, body)

    def on_response_complete(self) -> None:
        """Send a waiting error response after the last of the earlier requests. Called when a response is complete."""
        CoalescedWrites.on_response_complete(self)
        if self._pending_response and not self.pipeline and not self.transport.is_closing():
            self._send_and_close(self._pending_response)

    def send_400_response(self, msg: str) -> None:
        """Send an error that gives the cause. Called by `data_received` after the parser has failed."""
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, _HeadTooLarge):
            self._refuse_large()
        elif isinstance(cause, httptools.HttpParserInvalidURLError | UnicodeDecodeError):
            self._refuse(400, "The URL cannot be parsed: it must be ASCII, with all other characters percent-encoded.")
        else:
            self._refuse(400, f"The request is not valid HTTP: {str(cause).strip(' .') or msg}.")

    # ---------------------------------------------------------------------------------------------------------

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _reading(self) -> Literal["nothing", "head", "body"]:
        """The part of a request that the next byte belongs to.

        The end of a body is not noticed if the response was complete before it.
        """
        cycle = self.cycle
        if self.scope is not None and (cycle is None or cycle.scope is not self.scope):
            return "head"
        return "body" if cycle is not None and cycle.more_body else "nothing"

    def _on_incomplete(self) -> None:
        if self._refused:
            return
        if self._unread > self.head_bytes:
            self._refuse_large()
        elif self._since is None or self._unfinished is not self.scope or self._reading() == "body":
            self._wait_for_caller()

    def _wait_for_caller(self) -> None:
        self._since, self._unfinished = self.loop.time(), self.scope
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._check_overdue)

    def _check_overdue(self) -> None:
        """Refuse the request if the client is overdue.

        Reads do not move the timer; when it fires early, it is set again.
        """
        self._timer = None
        if self._since is None or self._refused:
            return
        now = self.loop.time()
        if self.flow.read_paused:
            self._since = now  # the server itself has paused reading
        reading = self._reading()
        seconds_left = self._since + (self.body_seconds if reading == "body" else self.head_seconds) - now
        if seconds_left > 0:
            self._timer = self.loop.call_later(min(seconds_left, self.head_seconds), self._check_overdue)
        elif reading == "body":
            self._refuse(408, f"No more of the body arrived for {self.body_seconds:g} s. Send the request again.")
        elif reading == "head":
            self._refuse(
                408, f"The request head did not arrive within {self.head_seconds:g} s. Send the request again."
            )
        else:
            self.transport.close()  # no request was started

    def _refuse_large(self) -> None:
        self._refuse(431, f"The path and the headers together are over {self.head_bytes // 1024} KiB.")

    def _refuse(self, status: int, detail: str) -> None:
        """Send an error response if one is still possible, and parse nothing more of this connection."""
        if self.transport.is_closing():
            return
        self._refused, self._since = True, None
        response = _error_response(status, detail)
        cycle = self.cycle
        if self._reading() != "body":
            if cycle is None or cycle.response_complete:
                self._send_and_close(response)
            else:
                self._pending_response = response
        elif self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # its turn to be answered had not come
            self._pending_response = response
        elif cycle.response_started:
            self.transport.close()
        else:
            cycle.disconnected = True  # from now on the application receives "http.disconnect"
            cycle.message_event.set()
            self._send_and_close(response)

    def _send_and_close(self, response: bytes) -> None:
        self._unset_keepalive_if_required()
        self.transport.write(response)
        self.transport.write_eof()
        self.flow.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)


class _HeadTooLarge(Exception):
    """Raised in a callback of the parser, so that the parser stops."""


def _error_response(status: int, detail: str) -> bytes:
    body = msgspec.json.encode({"detail": detail})
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
