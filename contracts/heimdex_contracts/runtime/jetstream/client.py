"""nats-py's client, with a shorter way for what a job is made of: publishes, their answers, and deliveries.

nats-py keeps a queue and a task for each subscription, a handful of objects for each request and a wake-up for each
flush; at one message a time that is most of what a hand-over costs. Here a handler is called where the message was
read, an answer resolves its request's future at once, and what one turn of the event loop publishes is written in one
piece. Connecting, reconnecting, pings and all other subscriptions stay nats-py's. Private names of its are relied on
(that of the outbound buffer, the transport, the subscriptions), so its version is bounded in pyproject.toml, and
tests/integration/contracts/test_client.py and test_lost_links.py hold what is needed of them.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg

#: Called with subject, reply, payload and header block as they were read; must neither block nor raise.
Handler = Callable[[bytes, bytes, bytes, bytes], None]

#: Fire-and-forget messages (acknowledgements, progress) are buffered this long so that several share one write: the
#: write, and waking the server, cost more than the message.
LINGER_SECONDS: Final = 0.005

#: Between two tries to connect; where a server answers them with an `-ERR`, twice as long each time, up to the longest.
RECONNECT_SECONDS: Final = 0.25
MAX_RECONNECT_SECONDS: Final = 2.0

#: An `-ERR` after which nats-server keeps the connection; it ends the connection with any other (its client.go).
_TRANSIENT: Final = ("permissions violation", "invalid subject", "invalid publish subject")

_VERSION: Final = b"NATS/1.0"
_NO_RESPONDERS: Final = "503"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What came in answer to a request; `header_block`: see `headers_of`."""

    data: bytes
    header_block: bytes


class ServerError(nats.errors.Error):
    """An `-ERR` of the server, in its own words. `ends`: the connection ends with it, or was not accepted at all."""

    def __init__(self, text: str, *, ends: bool) -> None:
        super().__init__(text)
        self.ends = ends


class MessageTooLarge(nats.errors.MaxPayloadError):
    """The server would end the connection for this message, headers included."""

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
    """Of one process; `open` must be awaited once after it has connected.

    It connects again for ever, whatever the server says, and only to the servers that it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}
        self._inbox = ""
        self._tokens = itertools.count()
        self._asked: dict[bytes, asyncio.Future[Answer]] = {}
        #: How long a request is buffered, so that several share one write; 0 but where the owner is busy.
        self.request_linger: Callable[[], float] = lambda: 0.0
        self._write_at = float("inf")
        self._write_timer: asyncio.Handle | None = None
        self._refused_at = float("-inf")

    @property
    def pending_requests(self) -> int:
        """How many requests wait for their answers."""
        return len(self._asked)

    async def open(self) -> None:
        """Be ready for answers."""
        self._inbox = f"{self.new_inbox()}."
        await self.direct_subscribe(f"{self._inbox}*", self._on_answer)

    async def direct_subscribe(self, subject: str, handler: Handler) -> int:
        """Call `handler` with each message on this subject, also after reconnections. Returns its number."""
        # Known before the server is asked, so that no message comes too early.
        number: int = self._sid + 1
        self._handlers[number] = handler
        await self.subscribe(subject, cb=_never)
        return number

    async def direct_unsubscribe(self, number: int, timeout: float) -> None:
        """Stop listening; returns when what the server had sent by now was handled. Raises nats-py's errors."""
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
        """Listen on another subject from the next connection on. For what must not hear what was asked for before."""
        subscription = self._subs.get(number)
        if subscription is not None:
            subscription._subject = subject

    def drop_unsent(self) -> None:
        """Forget what waits to be written: to be called when the connection is lost.

        The server that is connected to next may know the sequences of an acknowledgement by other messages.
        """
        self._pending = []
        self._pending_data_size = 0

    async def flush(self, timeout: float = 10) -> None:
        """Return when the server has handled all that was sent by now. Raises nats-py's errors or ConnectionError."""
        self._write()  # nats-py's ping would overtake what waits
        try:
            await super().flush(timeout)  # type: ignore[arg-type]  # asyncio takes fractions of a second
        except RuntimeError as error:  # uvloop's word for a transport that is closed
            raise ConnectionError(str(error)) from error

    def send(
        self,
        subject: str,
        payload: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        linger: float = LINGER_SECONDS,
    ) -> None:
        """Publish, without waiting; what is sent while the connection is lost may be lost with it.

        within: seconds after which it must be on its way; 0: with this turn of the event loop.
        Raises ConnectionError when there is no connection, MessageTooLarge, ValueError for a header that is no single
        line.
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
        """Raises MessageTooLarge where `send` would."""
        size = len(header_block(headers)) + len(payload)
        if size > self._max_payload:
            raise MessageTooLarge(size, self._max_payload)

    async def learn_max_payload(self, timeout: float) -> None:
        """Ask the server for its limit by a connection of its own. Raises nats-py's errors, TimeoutError or OSError."""
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
                await other.flush(timeout)  # the limit of its account comes after the first ping
        finally:
            other._abort()
        # After a reconnection meanwhile, the limit is that of another server, which has sent its own.
        if self._current_server is server:
            self._max_payload = other._max_payload

    async def direct_request(
        self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request, one answer. Raises TimeoutError after `timeout` seconds, NoRespondersError, or as `send`."""
        loop = asyncio.get_running_loop()
        token = b"%d" % next(self._tokens)
        future: asyncio.Future[Answer] = loop.create_future()
        self._asked[token] = future
        timer = loop.call_later(timeout, _expire, future)
        try:
            self.send(subject, payload, self._inbox + token.decode(), headers, self.request_linger())
            return await future
        finally:
            timer.cancel()
            del self._asked[token]

    def _on_answer(self, subject: bytes, _: bytes, data: bytes, block: bytes) -> None:
        future = self._asked.get(subject[subject.rfind(b".") + 1 :])
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
        # What cannot be written now is dropped when the loss of the connection is told, or is written by nats-py.
        if not self._pending or self._status != Client.CONNECTED or self._transport is None:
            return
        try:
            self._transport.write(b"".join(self._pending))
        except (OSError, RuntimeError, AttributeError):
            return  # the connection just broke: its reader will say so
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
            # The reading of everything that follows must go on.
            await self._error_cb(error)

    # What follows guards nats-py's reading and reconnecting against ends that nobody would be told of.

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # A subject that is no UTF-8 must not end the reading of everything that follows it.
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
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (IndexError, ValueError):  # no header block at all
            return None
        return found

    async def _process_pong(self) -> None:
        # A flush that was cancelled leaves its future behind, and nats-py's reader would end with it.
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes for good after most of them, which would end the process, with whatever it holds.
        text = err_msg.strip("'")
        ends = not text.startswith(_TRANSIENT)
        await self._error_cb(ServerError(text, ends=ends))
        if ends:
            self._slow_down()
            await self._process_op_err(nats.errors.UnexpectedEOF())

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Also the one after CONNECT, with the limits of the account. A cluster's other addresses are not learned:
        # they may be unreachable from here, and each costs a connect's time-out.
        self._max_payload = info.get("max_payload", self._max_payload)
        await super()._process_info({**info, "connect_urls": None}, initial_connection)

    async def _connect_to_server(self, s: Srv) -> None:
        # A try that failed leaves its socket open, and tasks that would read from the next one.
        self._abort()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        try:
            await super()._connect_to_server(s)
        except Exception:
            self.options["reconnect_time_wait"] = RECONNECT_SECONDS  # it refuses nothing: it is not there
            raise

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except (RuntimeError, ValueError) as error:
            # uvloop's word for a connection that was reset, asyncio's for a line without an end: nats-py would not try
            # again.
            raise ConnectionError(str(error)) from error
        except nats.errors.Error as error:
            said = str(error).removeprefix("nats: ")
            if not said.startswith("'"):
                raise
            self._slow_down()
            # In lower case, as nats-py has them from the middle of a connection's life.
            raise ServerError(said.strip("'").lower(), ends=True) from None
        if self._status != Client.CONNECTED:  # nats-py takes any other line for an answer, the end of them too
            raise ConnectionError("the server did not answer the first ping")

    async def _attempt_reconnect(self) -> None:
        # nats-py waits until what it had written is sent, which a link that swallows everything never does.
        self._abort()
        await super()._attempt_reconnect()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self._reading_task is asyncio.current_task():
            # However it ended, nobody reads any more. Where a reconnection or the end has begun, this does nothing.
            await self._process_op_err(nats.errors.UnexpectedEOF())

    def _slow_down(self) -> None:
        """Of a server that refuses: each of its refusals is a line in its log."""
        now = time.monotonic()
        recent = now - self._refused_at < 5 * MAX_RECONNECT_SECONDS
        wait = 2 * self.options["reconnect_time_wait"] if recent else RECONNECT_SECONDS
        self.options["reconnect_time_wait"] = min(wait, MAX_RECONNECT_SECONDS)
        self._refused_at = now

    def _abort(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


async def _never(_: Msg) -> None:
    """What nats-py would call; the handler is called instead."""


async def _ignore(_: Exception) -> None:
    """Whoever connects gets it raised."""


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def header_block(headers: dict[str, str]) -> bytes:
    """As it goes over the wire. Raises ValueError for a name or a value that is no single line."""
    text = "NATS/1.0\r\n" + "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) + "\r\n"
    if text.count("\n") != len(headers) + 2 or text.count("\r") != len(headers) + 2:
        raise ValueError("a header's value must be a single line")
    return text.encode()


def headers_of(block: bytes) -> dict[str, str]:
    """The headers of a block (`NATS/1.0[ <status>[ <description>]]\\r\\nName: value\\r\\n...`), without its status."""
    found: dict[str, str] = {}
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found


def status_of(block: bytes) -> tuple[str, str]:
    """The status and its description; empty where a block has none, as that of any message in a stream."""
    if not block.startswith(_VERSION + b" "):
        return "", ""
    status, _, description = block[len(_VERSION) + 1 : block.find(b"\r\n")].decode(errors="replace").partition(" ")
    return status, description.strip()
