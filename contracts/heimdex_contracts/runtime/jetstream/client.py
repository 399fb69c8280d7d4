"""nats-py's client with a faster path for a job's messages: publishes, their responses, and deliveries.

nats-py needs a queue and a task for each subscription, several objects for each request and a wake-up for each flush.
With one message at a time, that is most of the cost of a hand-over. Here, the reader calls the handler directly, a
response resolves its request's future at once, and one write sends all messages that one iteration of the event loop
publishes. nats-py still connects, reconnects, pings, and handles all other subscriptions. This code uses private names
of nats-py (its outbound buffer, transport and subscriptions), so pyproject.toml bounds its version, and
tests/integration/contracts/test_client.py and test_lost_links.py test the behaviour that this code needs.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg

from heimdex_contracts.runtime import forks

#: Called with the subject, reply, payload and header block as read from the connection; must neither block nor raise.
Handler = Callable[[bytes, bytes, bytes, bytes], None]

#: Fire-and-forget messages (acknowledgements, progress) are buffered this long so that several share one write: the
#: write, and waking the server, cost more than the message.
LINGER_SECONDS: Final = 0.005

#: Delay between two attempts to connect. It doubles, up to MAX_RECONNECT_SECONDS, while a server answers with `-ERR`.
RECONNECT_SECONDS: Final = 0.25
MAX_RECONNECT_SECONDS: Final = 2.0

#: Errors (`-ERR`) after which nats-server keeps the connection; it closes the connection after all others (client.go).
_TRANSIENT: Final = ("permissions violation", "invalid subject", "invalid publish subject")

_VERSION: Final = b"NATS/1.0"
_NO_RESPONDERS: Final = "503"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The response to a request. `header_block`: see `headers_of`."""

    data: bytes
    header_block: bytes


class ServerError(nats.errors.Error):
    """The server sent an `-ERR`. The text is the server's.

    ends: the server closes the connection after this error, or did not accept the connection at all.
    """

    def __init__(self, text: str, *, ends: bool) -> None:
        super().__init__(text)
        self.ends = ends


class MessageTooLarge(nats.errors.MaxPayloadError):
    """A message, headers included, exceeds max_payload; the server would close the connection.

    size: the size of the message in bytes. limit: the server's max_payload in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"a message of {self.size:,} bytes is over the max_payload of the NATS server ({self.limit:,} bytes): "
            "raise max_payload in the configuration of each NATS server"
        )


class DirectClient(Client):
    """The NATS client of one process. `open` must be awaited once after it has connected.

    It reconnects for ever, whatever errors the server returns, and only to the servers that it was configured with.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}
        self._inbox = ""
        self._tokens = itertools.count()
        self._requests: dict[bytes, asyncio.Future[Answer]] = {}
        #: Seconds for which a request is buffered so that several share one write; 0 unless the owner is busy.
        self.request_linger: Callable[[], float] = lambda: 0.0
        self._write_at = float("inf")
        self._write_timer: asyncio.Handle | None = None
        self._refused_at = float("-inf")
        self._socket: tuple[int, int] | None = None
        forks.keep_from_children(self)

    def socket_identity(self) -> tuple[int, int] | None:
        """Return the descriptor and the inode of the newest connection's socket; None before the first connection."""
        return self._socket

    @property
    def pending_requests(self) -> int:
        """The number of requests that wait for their responses."""
        return len(self._requests)

    async def open(self) -> None:
        """Subscribe to the responses of `direct_request`."""
        self._inbox = f"{self.new_inbox()}."
        await self.direct_subscribe(f"{self._inbox}*", self._on_answer)

    async def direct_subscribe(self, subject: str, handler: Handler) -> int:
        """Call `handler` with each message on this subject, also after reconnections. Returns its number."""
        # Registered before the server knows the subscription, so that no message arrives too early.
        number: int = self._sid + 1
        self._handlers[number] = handler
        await self.subscribe(subject, cb=_never)
        return number

    async def direct_unsubscribe(self, number: int, timeout: float) -> None:
        """Unsubscribe, and return once all messages that the server has sent are handled. Raises nats-py's errors."""
        await self._send_unsubscribe(number)
        try:
            await self.flush(timeout)
        finally:
            self._handlers.pop(number, None)
            subscription = self._subs.get(number)
            if subscription is not None:
                subscription._stop_processing()
                self._remove_sub(number)

    def direct_resubscribe(self, number: int, subject: str) -> None:
        """Change the subscription's subject from the next connection on.

        The subscription then receives no responses to the requests of the previous connection.
        """
        subscription = self._subs.get(number)
        if subscription is not None:
            subscription._subject = subject

    def drop_unsent(self) -> None:
        """Discard all buffered messages. Must be called when the connection is lost.

        The next server may have assigned the sequence of a buffered acknowledgement to another message.
        """
        self._pending = []
        self._pending_data_size = 0

    async def flush(self, timeout: float = 10) -> None:
        """Return once the server has handled all messages sent before. Raises nats-py's errors or ConnectionError."""
        self._write()  # otherwise nats-py's ping would overtake buffered messages
        try:
            await super().flush(timeout)  # type: ignore[arg-type]  # asyncio accepts fractions of a second
        except RuntimeError as error:  # uvloop raises it for a closed transport
            raise ConnectionError(str(error)) from error

    def send(
        self,
        subject: str,
        payload: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        linger: float = LINGER_SECONDS,
    ) -> None:
        """Publish without waiting for a response. A message that is buffered when the connection breaks may be lost.

        linger: seconds for which the message may be buffered; 0: until the end of this event-loop iteration.
        Raises ConnectionError when there is no connection, MessageTooLarge, and ValueError for a header that is not a
        single line.
        """
        if self._status != Client.CONNECTED:
            raise ConnectionError("not connected to NATS")
        block = header_block(headers) if headers else b""
        size = len(block) + len(payload)
        if size > self._max_payload:
            raise MessageTooLarge(size, self._max_payload)
        if block:
            line = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode()
        else:
            line = f"PUB {subject} {reply} {size}\r\n".encode()
        self._pending += (line, block, payload, b"\r\n")
        self._pending_data_size += len(line) + size + 2
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        self._write_after(linger)

    def check_size(self, payload: bytes, headers: dict[str, str]) -> None:
        """Raise MessageTooLarge if `send` would raise it for this message."""
        size = len(header_block(headers)) + len(payload)
        if size > self._max_payload:
            raise MessageTooLarge(size, self._max_payload)

    async def learn_max_payload(self, timeout: float) -> None:
        """Read the server's current max_payload through a second connection.

        Raises nats-py's errors, TimeoutError or OSError.
        """
        server = self._current_server
        if server is None:
            raise ConnectionError("not connected to NATS")
        other = DirectClient()
        try:
            async with asyncio.timeout(timeout):
                await other.connect(
                    servers=[server.uri.geturl()],
                    name=self.options["name"],
                    allow_reconnect=False,
                    error_cb=_ignore,
                )
                await other.flush(timeout)  # the server sends the account's limit after the first ping
        finally:
            other._abort()
        # After a reconnection in the meantime, the current server is another one, which has sent its own limit.
        if self._current_server is server:
            self._max_payload = other._max_payload

    async def direct_request(
        self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request and return its response.

        Raises TimeoutError after `timeout` seconds, NoRespondersError, or what `send` raises.
        """
        loop = asyncio.get_running_loop()
        token = b"%d" % next(self._tokens)
        future: asyncio.Future[Answer] = loop.create_future()
        self._requests[token] = future
        timer = loop.call_later(timeout, _expire, future)
        try:
            self.send(subject, payload, self._inbox + token.decode(), headers, self.request_linger())
            return await future
        finally:
            timer.cancel()
            del self._requests[token]

    def _on_answer(self, subject: bytes, _: bytes, data: bytes, block: bytes) -> None:
        future = self._requests.get(subject[subject.rfind(b".") + 1 :])
        if future is None or future.done():
            return
        if block and not data and status_of(block)[0] == _NO_RESPONDERS:
            future.set_exception(nats.errors.NoRespondersError())
        else:
            future.set_result(Answer(data, block))

    def _write_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._write_at <= at:
            return
        if self._write_timer:
            self._write_timer.cancel()
        self._write_at = at
        self._write_timer = loop.call_later(seconds, self._write) if seconds > 0 else loop.call_soon(self._write)

    def _write(self) -> None:
        self._write_at, self._write_timer = float("inf"), None
        # Messages that cannot be written now are discarded by `drop_unsent`, or nats-py writes them.
        if not self._pending or self._status != Client.CONNECTED or self._transport is None:
            return
        try:
            self._transport.write(b"".join(self._pending))
        except (OSError, RuntimeError, AttributeError):
            return  # the connection has just broken: its reader reports that
        self._pending = []
        self._pending_data_size = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            handler(subject, reply, data, headers or b"")
        except Exception as error:
            # The reader must continue with the messages that follow.
            await self._error_cb(error)

    # The methods below keep nats-py's reader and reconnection from stopping silently.

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # A subject that is not UTF-8 must not stop the reader.
        return Msg(
            _client=self,
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except (IndexError, ValueError):  # not a header block
            return None
        return parsed

    async def _process_pong(self) -> None:
        # A cancelled flush leaves its finished future behind, which would stop nats-py's reader.
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes the client permanently after most errors, which would end the process and the work it holds.
        text = err_msg.strip("'")
        ends = not text.startswith(_TRANSIENT)
        await self._error_cb(ServerError(text, ends=ends))
        if ends:
            self._slow_down()
            await self._process_op_err(nats.errors.UnexpectedEOF())

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # This includes the INFO after CONNECT, which has the account's limits. The addresses of a cluster's other
        # servers are ignored: they may be unreachable from here, and each one costs the time-out of a connect.
        self._max_payload = info.get("max_payload", self._max_payload)
        await super()._process_info({**info, "connect_urls": None}, initial_connection)

    async def _connect_to_server(self, s: Srv) -> None:
        # A failed attempt leaves its socket open, and tasks that would read from the next socket.
        self._abort()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        try:
            await super()._connect_to_server(s)
        except Exception:
            self.options["reconnect_time_wait"] = RECONNECT_SECONDS  # the server is down; it did not refuse us
            raise
        # The descriptor alone may be another file's by the time of a fork: the transport does not say when it closed.
        descriptor = self._descriptor()
        self._socket = None if descriptor is None else (descriptor, os.fstat(descriptor).st_ino)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except (RuntimeError, ValueError) as error:
            # uvloop raises RuntimeError for a reset connection, asyncio ValueError for an overlong line. nats-py would
            # not retry after either.
            raise ConnectionError(str(error)) from error
        except nats.errors.Error as error:
            text = str(error).removeprefix("nats: ")
            if not text.startswith("'"):
                raise
            self._slow_down()
            # In lower case, as nats-py reports the errors of an established connection.
            raise ServerError(text.strip("'").lower(), ends=True) from None
        if self._status != Client.CONNECTED:  # nats-py accepts any other line as the response, even the end of input
            raise ConnectionError("the server did not answer the first ping")

    async def _attempt_reconnect(self) -> None:
        # nats-py waits until its written data is sent, which never happens on a connection that drops all packets.
        self._abort()
        await super()._attempt_reconnect()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self._reading_task is asyncio.current_task():
            # The reader has stopped, for whatever reason. If a reconnection or a close has begun, this does nothing.
            await self._process_op_err(nats.errors.UnexpectedEOF())

    def _slow_down(self) -> None:
        """Increase the delay before the next attempt: a server that refuses connections logs each refusal."""
        now = time.monotonic()
        recent = now - self._refused_at < 5 * MAX_RECONNECT_SECONDS
        wait = 2 * self.options["reconnect_time_wait"] if recent else RECONNECT_SECONDS
        self.options["reconnect_time_wait"] = min(wait, MAX_RECONNECT_SECONDS)
        self._refused_at = now

    def _descriptor(self) -> int | None:
        # A TcpTransport has a stream writer, a WebSocketTransport a response.
        connection = getattr(self._transport, "_io_writer", None) or getattr(self._transport, "_ws", None)
        socket = connection.get_extra_info("socket") if connection is not None else None
        return None if socket is None else int(socket.fileno())

    def _abort(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


async def _never(_: Msg) -> None:
    """Placeholder for nats-py's callback: `_process_msg` calls the handler instead."""


async def _ignore(_: Exception) -> None:
    """Ignore the error: `connect` raises it too."""


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def header_block(headers: dict[str, str]) -> bytes:
    """Encode headers as the protocol requires. Raises ValueError for a name or value that is not a single line."""
    text = "NATS/1.0\r\n" + "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) + "\r\n"
    if text.count("\n") != len(headers) + 2 or text.count("\r") != len(headers) + 2:
        raise ValueError("a header's value must be a single line")
    return text.encode()


def headers_of(block: bytes) -> dict[str, str]:
    """Parse a header block (`NATS/1.0[ <status>[ <description>]]\\r\\nName: value\\r\\n...`), without its status."""
    headers: dict[str, str] = {}
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


def status_of(block: bytes) -> tuple[str, str]:
    """Parse the status and its description; both are empty for a block without a status, as of any stored message."""
    if not block.startswith(_VERSION + b" "):
        return "", ""
    status, _, description = block[len(_VERSION) + 1 : block.find(b"\r\n")].decode(errors="replace").partition(" ")
    return status, description.strip()
