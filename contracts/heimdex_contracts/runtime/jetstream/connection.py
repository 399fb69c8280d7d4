"""The NATS connection of a process: connected for ever, or the process ends. Requests whose outcome is known.

Of nats-py only the core client is used (see `client`). JetStream's API is requests and replies on `$JS.API.>`, and
asking it directly leaves each time-out, error code and header in our hands.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import nats.errors

from heimdex_contracts.errors import BrokerUnavailable
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

#: JetStream's error codes that we act on (nats-server, server/errors.json).
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
#: A message of this id is being replicated: whether it will be stored is not decided yet.
BEING_STORED: Final = 10158
#: An atomic batch holds a message whose id is stored already.
DUPLICATE_IN_BATCH: Final = 10201
NO_MESSAGE: Final = 10037
STREAM_NOT_FOUND: Final = 10059
CONSUMER_NOT_FOUND: Final = 10014
#: A consumer could not be created or changed, for whichever reason the description says.
CONSUMER_FAILED: Final = 10012
#: A stream of this name has another configuration.
NAME_IN_USE: Final = 10058
#: The account allows only streams that have a limit in bytes.
MAX_BYTES_REQUIRED: Final = 10113
#: A message is over a limit of its stream, or, which `Broker.publish` says itself, over the server's max_payload.
TOO_LARGE: Final = 10054

#: Between two looks whether the server takes larger messages by now, and the time for one look.
LOOK_SECONDS: Final = 2.0
LOOK_AT_MOST_SECONDS: Final = 1.5


class ApiError(msgspec.Struct, frozen=True):
    """The `error` of a JetStream answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's answer to a publish: stored at `seq`, or `error`. `duplicate`: its message id was stored before."""

    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class Stored(msgspec.Struct, frozen=True):
    """A message as it lies in a stream."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]


class JetStreamError(Exception):
    """JetStream answered with an error. `err_code`: which one; `is_temporary`: the server expects it to pass."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(f"{error.description} ({error.err_code})")
        self.err_code = error.err_code
        self.is_temporary = error.code == 503


_ack_decoder: Final = msgspec.json.Decoder(PubAck)


class Broker:
    """One connection. Reconnects for ever; `closed` is set when nats-py gave up all the same: the process then ends."""

    def __init__(self, settings: Settings, name: str, log: Logger) -> None:
        self.nc = DirectClient()
        self.closed = asyncio.Event()
        #: Run after every reconnection, before anything else is told of it.
        self.on_reconnect: list[Callable[[], Awaitable[None]]] = []
        #: Run when the connection is lost; must not block.
        self.on_disconnect: list[Callable[[], None]] = []
        #: Run when NATS answers that nobody is there for a subject or a pull; must not block.
        self.on_missing: list[Callable[[], None]] = []
        self._settings = settings
        self._name = name
        self._log = log
        self._said_waiting = False
        #: What a server refused this connection with since it was last accepted.
        self._refusals: set[str] = set()
        self._limit_said = 0
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._closing = False
        self._reviving: asyncio.Task[None] | None = None
        #: Whether a stream has more than one copy: a follower may then answer a direct get, and lag behind.
        self.replicated = settings.stream_replicas > 1

    @property
    def server_version(self) -> str:
        """Of the server that this process is connected to, such as 2.12.8; empty before the first connection."""
        return str(self.nc._server_info.get("version", ""))

    @property
    def connected(self) -> bool:
        """Whether a request sent now would go out now."""
        return bool(self.nc.is_connected)

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one message, headers included, as far as it is known."""
        return int(self.nc.max_payload)

    async def connect(self) -> None:
        """Wait for NATS, however long it takes, and connect."""
        await self.nc.connect(
            servers=self._settings.nats_servers,
            name=self._name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # only asyncio.sleep sees it
            connect_timeout=3,
            # Notices a link that swallows everything within 3 x 3 s instead of nats-py's minutes.
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
        """Send what is buffered, then close. Never takes longer than 2 s."""
        self._closing = True
        if self.nc.is_closed:
            return
        try:
            async with asyncio.timeout(2):
                if self.connected:
                    await self.nc.flush(1)
                await self.nc.close()
        except (TimeoutError, nats.errors.Error, OSError, RuntimeError):
            self._log.debug("nats_close_slow", message="NATS did not close in time")

    def send(
        self,
        subject: str,
        payload: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        linger: float = LINGER_SECONDS,
    ) -> None:
        """Publish, waiting for nothing, `linger` so many seconds. Raises BrokerUnavailable when it cannot be sent."""
        try:
            self.nc.send(subject, payload, reply, headers, linger)
        except MessageTooLarge as error:
            # Once for each limit: who sends without waiting does so often, and passes over what cannot be sent.
            if self._limit_said != error.limit:
                self._limit_said = error.limit
                self._log.error("message_too_large", message=f"not sent: {error}", subject=subject)
            raise BrokerUnavailable(str(error)) from None
        except (nats.errors.Error, ConnectionError) as error:
            raise BrokerUnavailable(str(error)) from None

    async def flush(self, timeout: float) -> None:
        """Return when NATS has handled all that was sent by now. Raises BrokerUnavailable after `timeout` seconds."""
        if not self.connected:
            raise BrokerUnavailable("not connected to NATS")
        try:
            await self.nc.flush(timeout)
        except (nats.errors.Error, TimeoutError, ConnectionError) as error:
            raise BrokerUnavailable(f"NATS did not answer: {error or type(error).__name__}") from error

    async def request(
        self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request, one answer. Raises BrokerUnavailable when none came within `timeout` seconds."""
        try:
            return await self._ask(subject, payload, timeout, headers)
        except MessageTooLarge as error:
            raise BrokerUnavailable(str(error)) from None

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], timeout: float = 2.0) -> PubAck:
        """Publish to a stream; its answer may be an error. Raises BrokerUnavailable: the outcome is not known.

        A message over the server's max_payload, for which the server would end the connection, gets TOO_LARGE.
        """
        try:
            reply = await self._ask(subject, payload, timeout, headers)
        except MessageTooLarge as error:
            return PubAck(error=_too_large(error))
        return _ack_decoder.decode(reply.data)

    async def too_large(self, payload: bytes, headers: dict[str, str]) -> ApiError | None:
        """What `publish` would answer of itself: for messages that are worth sending only all together."""
        try:
            self.nc.check_size(payload, headers)
        except MessageTooLarge as error:
            if not await self._has_room_for(error.size):
                return _too_large(error)
        return None

    async def _ask(self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None) -> Answer:
        """Raises BrokerUnavailable or MessageTooLarge."""
        try:
            try:
                return await self.nc.direct_request(subject, payload, timeout, headers)
            except MessageTooLarge as error:
                if not await self._has_room_for(error.size):
                    raise
            return await self.nc.direct_request(subject, payload, timeout, headers)
        except MessageTooLarge:
            raise
        except nats.errors.NoRespondersError:
            self.missing()
            raise BrokerUnavailable(f"NATS knows nobody who takes {subject}") from None
        except (nats.errors.Error, TimeoutError, ConnectionError) as error:
            raise BrokerUnavailable(f"NATS did not answer on {subject}: {error or type(error).__name__}") from error

    async def _has_room_for(self, size: int) -> bool:
        """Whether the server takes so many bytes by now: the server sends a reloaded limit to new connections only."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if self.max_payload < size and now - self._looked_at > LOOK_SECONDS:
                self._looked_at = now
                try:
                    await self.nc.learn_max_payload(LOOK_AT_MOST_SECONDS)
                except (nats.errors.Error, TimeoutError, OSError) as error:
                    self._log.debug(
                        "max_payload_unknown", message="the server did not answer with its limit", error=str(error)
                    )
        return size <= self.max_payload

    def missing(self) -> None:
        """NATS has said that a stream or a consumer is not there."""
        for call in self.on_missing:
            call()

    async def api(self, call: str, body: dict[str, Any] | None = None, timeout: float = 3.0) -> dict[str, Any]:
        """Ask `$JS.API.<call>`. Raises JetStreamError for an error it answers, BrokerUnavailable for none."""
        reply = await self.request(f"$JS.API.{call}", msgspec.json.encode(body) if body else b"", timeout)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        if "error" in answer:
            raise JetStreamError(msgspec.convert(answer["error"], ApiError))
        return answer

    async def last_message(self, stream: str, subject_filter: str, timeout: float = 2.0) -> Stored | None:
        """The newest message that matches, wildcards allowed; None where there is none.

        Raises BrokerUnavailable, or JetStreamError (say, while the stream is being made).
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
        """The last sequence that the stream's leader has given, and applied. Raises as `api`."""
        return int((await self.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def next_message(self, stream: str, subject_filter: str, sequence: int) -> Stored | None:
        """The first message that matches at or after this sequence; None where there is none. Raises as above."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence, "next_by_subj": subject_filter})
        except JetStreamError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        return _stored(answer["message"])

    async def delete_of(self, stream: str, subject_filter: str, sequence: int) -> None:
        """Remove the message at this sequence, if it is one of these: a sequence may have been given anew since.

        Raises as `delete`.
        """
        found = await self.next_message(stream, subject_filter, sequence)
        if found is not None and found.sequence == sequence:
            await self.delete(stream, sequence)

    async def delete(self, stream: str, sequence: int) -> bool:
        """Remove one message. False where it was gone already. Raises BrokerUnavailable or JetStreamError."""
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
                message="a NATS subscription overflowed: its messages come back after their ack wait",
                error=text,
            )
        elif isinstance(error, ServerError) and error.ends:
            # While it waits the reason may become another one: each is said once.
            if text not in self._refusals:
                self._refusals.add(text)
                self._log.warning(
                    "nats_refused",
                    message="NATS ended or refused the connection: trying again until it is accepted",
                    error=text,
                )
        elif not self.connected:
            if not self._said_waiting:
                self._said_waiting = True
                self._log.warning("nats_waiting", message="NATS is not there: waiting for it", error=text)
        else:
            self._log.warning("nats_error", message="NATS reported an error", error=text)

    async def _on_disconnect(self) -> None:
        self.nc.drop_unsent()
        for call in self.on_disconnect:
            call()
        if not self._closing:
            self._said_waiting = True
            self._log.warning("nats_disconnected", message="lost the connection to NATS: reconnecting")

    def _accepted(self) -> None:
        self._said_waiting = False
        self._refusals.clear()

    async def _on_reconnected(self) -> None:
        self._accepted()
        self._log.info("nats_reconnected", message="connected to NATS again", server=self._server())
        # In a task of its own: nats-py is still inside its reconnection while this callback runs.
        if self._reviving:
            self._reviving.cancel()
        self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        for call in self.on_reconnect:
            while True:
                try:
                    await call()
                    break
                except Exception:
                    # Without it the process would be connected, and never ready again.
                    self._log.exception("reconnection_broken", message="work after a reconnection failed: once more")
                    await asyncio.sleep(1)

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
