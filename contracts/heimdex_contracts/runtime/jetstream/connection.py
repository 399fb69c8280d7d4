"""The NATS connection of a process, which reconnects for ever, and requests to JetStream whose outcome is known.

Only nats-py's core client is used (see `client`). JetStream's API consists of requests and responses on `$JS.API.>`;
sending them directly gives this code control over each time-out, error code and header.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import nats.errors

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.client import (
    LINGER_SECONDS,
    RECONNECT_SECONDS,
    Answer,
    DirectClient,
    MessageTooLarge,
    ServerError,
    headers_of,
    status_of,
)
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.settings import Settings

#: JetStream's error codes that this project handles (nats-server, server/errors.json).
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
#: A message with this id is being replicated: whether it will be stored is not yet decided.
BEING_STORED: Final = 10158
#: An atomic batch contains a message whose id is already stored.
DUPLICATE_IN_BATCH: Final = 10201
NO_MESSAGE: Final = 10037
STREAM_NOT_FOUND: Final = 10059
CONSUMER_NOT_FOUND: Final = 10014
#: A consumer could not be created or changed; the description gives the reason.
CONSUMER_FAILED: Final = 10012
#: A stream with this name has another configuration.
NAME_IN_USE: Final = 10058
#: The account requires a limit in bytes on every stream.
MAX_BYTES_REQUIRED: Final = 10113
#: A message exceeds a limit of its stream. `Broker.publish` also returns it for a message over the server's
#: max_payload.
TOO_LARGE: Final = 10054

#: The minimum interval between two checks whether the server's max_payload has been raised.
CHECK_SECONDS: Final = 2.0
#: The time-out of one such check.
LOOK_AT_MOST_SECONDS: Final = 1.5


class ApiError(msgspec.Struct, frozen=True):
    """The `error` field of a JetStream response."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's response to a publish: the sequence `seq` of the stored message, or `error`.

    duplicate: a message with this id was already stored.
    """

    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class Stored(msgspec.Struct, frozen=True):
    """A message stored in a stream."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]


class JetStreamError(Exception):
    """JetStream returned an error.

    err_code: JetStream's error code. is_temporary: the error has status 503, so a later request may succeed.
    """

    def __init__(self, error: ApiError) -> None:
        super().__init__(f"{error.description} ({error.err_code})")
        self.err_code = error.err_code
        self.is_temporary = error.code == 503


_ack_decoder: Final = msgspec.json.Decoder(PubAck)


class Broker:
    """The NATS connection of one process. It reconnects for ever.

    closed: set if nats-py gives up nevertheless; the process then exits.
    """

    def __init__(self, settings: Settings, name: str, log: Logger) -> None:
        self.nc = DirectClient()
        self.closed = asyncio.Event()
        #: Called after every reconnection, one after the other; a callback that raises is retried.
        self.on_reconnect: list[Callable[[], Awaitable[None]]] = []
        #: Called when the connection is lost; must not block.
        self.on_disconnect: list[Callable[[], None]] = []
        #: Called when NATS reports that a subject has no responder or a pull has no consumer; must not block.
        self.on_missing: list[Callable[[], None]] = []
        self._settings = settings
        self._name = name
        self._log = log
        self._logged_waiting = False
        #: The errors with which a server refused the connection since it was last accepted.
        self._refusals: set[str] = set()
        self._logged_limit = 0
        self._checking = asyncio.Lock()
        self._checked_at = float("-inf")
        self._closing = False
        self._reviving: asyncio.Task[None] | None = None
        #: Whether a stream has several replicas: a follower that lags behind may then answer a direct get.
        self.replicated = settings.stream_replicas > 1

    @property
    def server_version(self) -> str:
        """The version of the connected server, such as 2.12.8; empty before the first connection."""
        return str(self.nc._server_info.get("version", ""))

    @property
    def connected(self) -> bool:
        """Whether the connection is established, so that a message can be sent now."""
        return bool(self.nc.is_connected)

    @property
    def max_payload(self) -> int:
        """The server's last known limit for one message, headers included, in bytes."""
        return int(self.nc.max_payload)

    async def connect(self) -> None:
        """Connect to NATS. Waits until a server accepts the connection, however long that takes."""
        await self.nc.connect(
            servers=self._settings.nats_servers,
            name=self._name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # only passed to asyncio.sleep
            connect_timeout=3,
            # Detects a connection that drops all packets within 3 x 3 s; nats-py's defaults need minutes.
            ping_interval=3,
            max_outstanding_pings=2,
            pending_size=16 * 1024 * 1024,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
        )
        await self.nc.open()
        self._accepted()
        self._log.info("nats_connected", message="connected to NATS", server=self._server())

    async def close(self) -> None:
        """Send buffered messages, then close the connection. Takes at most 2 s."""
        self._closing = True
        if self.nc.is_closed:
            return
        try:
            async with asyncio.timeout(2):
                if self.connected:
                    await self.nc.flush(1)
                await self.nc.close()
        except (TimeoutError, nats.errors.Error, OSError, RuntimeError):
            self._log.debug("nats_close_slow", message="the NATS connection did not close in time")

    def send(
        self,
        subject: str,
        payload: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        linger: float = LINGER_SECONDS,
    ) -> None:
        """Publish without waiting for a response. Raises BrokerUnavailable when the message cannot be sent.

        linger: seconds for which the message may be buffered, so that several messages share one write.
        """
        try:
            self.nc.send(subject, payload, reply, headers, linger)
        except MessageTooLarge as error:
            # Logged once per limit: fire-and-forget messages are frequent, and their publishers ignore this error.
            if self._logged_limit != error.limit:
                self._logged_limit = error.limit
                self._log.error("message_too_large", message=f"not sent: {error}", subject=subject)
            raise BrokerUnavailable(str(error)) from None
        except (nats.errors.Error, ConnectionError) as error:
            raise BrokerUnavailable(str(error)) from None

    async def flush(self, timeout: float) -> None:
        """Return once NATS has handled all messages sent before. Raises BrokerUnavailable after `timeout` seconds."""
        if not self.connected:
            raise BrokerUnavailable("not connected to NATS")
        try:
            await self.nc.flush(timeout)
        except (nats.errors.Error, TimeoutError, ConnectionError) as error:
            raise BrokerUnavailable(f"NATS did not answer: {error or type(error).__name__}") from error

    async def request(
        self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request and return its response. Raises BrokerUnavailable if none arrives within `timeout` seconds."""
        try:
            return await self._request(subject, payload, timeout, headers)
        except MessageTooLarge as error:
            raise BrokerUnavailable(str(error)) from None

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], timeout: float = 2.0) -> PubAck:
        """Publish to a stream and return its response, which may be an error.

        A message over the server's max_payload is not sent, because the server would close the connection; the response
        then has the error TOO_LARGE. Raises BrokerUnavailable when the outcome is unknown.
        """
        try:
            reply = await self._request(subject, payload, timeout, headers)
        except MessageTooLarge as error:
            return PubAck(error=_too_large(error))
        return _ack_decoder.decode(reply.data)

    async def too_large(self, payload: bytes, headers: dict[str, str]) -> ApiError | None:
        """Return the error TOO_LARGE if `publish` would return it for this message, else None.

        Lets a caller check all messages of a batch before it sends the first one.
        """
        try:
            self.nc.check_size(payload, headers)
        except MessageTooLarge as error:
            if not await self._accepts(error.size):
                return _too_large(error)
        return None

    async def _request(self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None) -> Answer:
        """Send a request, again if the server has raised its limit. Raises BrokerUnavailable or MessageTooLarge."""
        try:
            try:
                return await self.nc.direct_request(subject, payload, timeout, headers)
            except MessageTooLarge as error:
                if not await self._accepts(error.size):
                    raise
            return await self.nc.direct_request(subject, payload, timeout, headers)
        except MessageTooLarge:
            raise
        except nats.errors.NoRespondersError:
            self.missing()
            raise BrokerUnavailable(f"NATS has no responder for {subject}") from None
        except (nats.errors.Error, TimeoutError, ConnectionError) as error:
            raise BrokerUnavailable(f"NATS did not answer on {subject}: {error or type(error).__name__}") from error

    async def _accepts(self, size: int) -> bool:
        """Return whether the server accepts a message of `size` bytes. Reads a raised max_payload from the server.

        A server that has reloaded its configuration sends the new limit to new connections only.
        """
        async with self._checking:
            now = asyncio.get_running_loop().time()
            if self.max_payload < size and now - self._checked_at > CHECK_SECONDS:
                self._checked_at = now
                try:
                    await self.nc.learn_max_payload(LOOK_AT_MOST_SECONDS)
                except (nats.errors.Error, TimeoutError, OSError) as error:
                    self._log.debug(
                        "max_payload_unknown", message="cannot read the server's max_payload", error=str(error)
                    )
        return size <= self.max_payload

    def missing(self) -> None:
        """Call the `on_missing` callbacks: NATS has reported that a stream or a consumer does not exist."""
        for call in self.on_missing:
            call()

    async def api(self, call: str, body: dict[str, Any] | None = None, timeout: float = 3.0) -> dict[str, Any]:
        """Send a request to `$JS.API.<call>` and return the response.

        Raises JetStreamError for an error response, BrokerUnavailable when no response arrives in time.
        """
        reply = await self.request(f"$JS.API.{call}", msgspec.json.encode(body) if body else b"", timeout)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        if "error" in answer:
            raise JetStreamError(msgspec.convert(answer["error"], ApiError))
        return answer

    async def last_message(self, stream: str, subject_filter: str, timeout: float = 2.0) -> Stored | None:
        """Return the newest message on these subjects, wildcards allowed, or None.

        Raises BrokerUnavailable or JetStreamError, for example while the stream is being created.
        """
        if not self.replicated:
            body = msgspec.json.encode({"last_by_subj": subject_filter})
            reply = await self.request(f"$JS.API.DIRECT.GET.{stream}", body, timeout)
            headers = headers_of(reply.header_block)
            if "Nats-Sequence" in headers:
                return Stored(headers["Nats-Subject"], int(headers["Nats-Sequence"]), reply.data, headers)
            status, _ = status_of(reply.header_block)
            if status == "404":
                return None
            raise BrokerUnavailable(f"{stream} answered a direct get with {status or 'nothing'}")
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject_filter}, timeout)
        except JetStreamError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        return _stored(answer["message"])

    async def last_sequence(self, stream: str) -> int:
        """Return the last sequence that the stream's leader has assigned and applied. Raises what `api` raises."""
        return int((await self.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def next_message(self, stream: str, subject_filter: str, sequence: int) -> Stored | None:
        """Return the first message on these subjects at or after this sequence, or None. Raises what `api` raises."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence, "next_by_subj": subject_filter})
        except JetStreamError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        return _stored(answer["message"])

    async def delete_of(self, stream: str, subject_filter: str, sequence: int) -> None:
        """Delete the message at this sequence if its subject matches: the stream may have reassigned the sequence.

        Raises what `delete` raises.
        """
        stored = await self.next_message(stream, subject_filter, sequence)
        if stored is not None and stored.sequence == sequence:
            await self.delete(stream, sequence)

    async def delete(self, stream: str, sequence: int) -> bool:
        """Delete one message. Returns False if it was already gone. Raises BrokerUnavailable or JetStreamError."""
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except JetStreamError as error:
            if error.err_code in {NO_MESSAGE, 10057, 10043}:
                return False
            raise
        return True

    def _server(self) -> str:
        url = self.nc.connected_url
        return f"{url.hostname}:{url.port}" if url else ""

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if isinstance(error, nats.errors.SlowConsumerError):
            self._log.error(
                "nats_slow_consumer",
                message="a NATS subscription overflowed: its messages will be redelivered after their ack wait",
                error=text,
            )
        elif isinstance(error, ServerError) and error.ends:
            # The reason may change while this process waits: each one is logged once.
            if text not in self._refusals:
                self._refusals.add(text)
                self._log.warning(
                    "nats_refused",
                    message="NATS closed or refused the connection: retrying until it is accepted",
                    error=text,
                )
        elif not self.connected:
            if not self._logged_waiting:
                self._logged_waiting = True
                self._log.warning("nats_waiting", message="NATS is down: waiting for it", error=text)
        else:
            self._log.warning("nats_error", message="NATS reported an error", error=text)

    async def _on_disconnect(self) -> None:
        self.nc.drop_unsent()
        for call in self.on_disconnect:
            call()
        if not self._closing:
            self._logged_waiting = True
            self._log.warning("nats_disconnected", message="lost the connection to NATS: reconnecting")

    def _accepted(self) -> None:
        self._logged_waiting = False
        self._refusals.clear()

    async def _on_reconnected(self) -> None:
        self._accepted()
        self._log.info("nats_reconnected", message="reconnected to NATS", server=self._server())
        # In a task of its own, because nats-py's reconnection waits for this callback.
        if self._reviving:
            self._reviving.cancel()
        self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        for call in self.on_reconnect:
            async for _ in repeat(1.0, 1.0):
                try:
                    await call()
                    break
                except Exception:
                    # Without a retry the process would be connected but never become ready again.
                    self._log.exception("reconnection_broken", message="a reconnection callback failed: retrying")

    async def _on_closed(self) -> None:
        self.closed.set()


def _too_large(error: MessageTooLarge) -> ApiError:
    return ApiError(400, TOO_LARGE, str(error))


def _stored(message: dict[str, Any]) -> Stored:
    return Stored(
        message["subject"],
        message["seq"],
        base64.b64decode(message.get("data", "")),
        headers_of(base64.b64decode(message.get("hdrs", ""))),
    )
