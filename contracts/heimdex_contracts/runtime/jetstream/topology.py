"""Ensures that the streams and their consumers exist and have the configuration that this project requires.

Every service checks them at start, after every reconnection, every few seconds, and at once when NATS reports that one
was removed or changed. The first service to notice a defect repairs it.

Topology before traffic: JetStream acknowledges and drops a message for which no consumer exists. An interest stream is
therefore created with an unused subject, its consumers are added, and only then does it get its own subjects.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Final, Protocol

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, LeaderBehind
from heimdex_contracts.runtime.backoff import repeat, set_within
from heimdex_contracts.runtime.jetstream import config_drift
from heimdex_contracts.runtime.jetstream.connection import (
    CONSUMER_FAILED,
    CONSUMER_NOT_FOUND,
    MAX_BYTES_REQUIRED,
    NAME_IN_USE,
    NO_MESSAGE,
    STREAM_NOT_FOUND,
    Broker,
    JetStreamError,
)
from heimdex_contracts.runtime.jetstream.message import Metadata, metadata_of
from heimdex_contracts.runtime.jetstream.publisher import BEHIND_SECONDS
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.streams import Consumer, Stream, without_none
from heimdex_contracts.subjects import NANOSECOND

#: The interval of the regular checks.
CHECK_SECONDS: Final = 10.0
#: The interval of the checks while there is a problem.
_REPAIR_SECONDS: Final = 1.0
#: The interval at which `until_whole` polls.
_WAIT_SECONDS: Final = 0.05
#: The number of consecutive reports of an unreadable consumer state after which the state is discarded.
UNREADABLE_TIMES: Final = 4
#: The time that the status store has to restore a stream's configuration before another service does.
OTHERS_SECONDS: Final = 1.0
#: The random spread of the times at which the status stores, and the other services, give streams their subjects.
STORES_SPREAD_SECONDS: Final = 0.1
OTHERS_SPREAD_SECONDS: Final = 1.0
#: How long a service's turn lasts. It covers all streams that the service finds without their subjects.
TURN_LASTS_SECONDS: Final = 10.0
#: The delay between the removal of a stream and its re-creation.
REMOVED_SECONDS: Final = 2.0
#: The minimum interval between two checks, so that one check covers a burst of advisories.
_SPACING_SECONDS: Final = 0.1

_MAX_BYTES_HINT: Final = (
    " A limit on a stream of jobs would discard jobs: unset max_bytes_required of the account (nats account edit)."
)

ADVISORIES: Final = "$JS.EVENT.ADVISORY"
#: The subjects of NATS's advisories about the streams and consumers of the account.
_ADVISORY_SUBJECTS: Final = (
    f"{ADVISORIES}.STREAM.DELETED.*",
    f"{ADVISORIES}.STREAM.UPDATED.*",
    f"{ADVISORIES}.CONSUMER.DELETED.*.*",
)


class Unfit(HeimdexError):
    """NATS does not accept the required configuration of a stream or consumer. The text gives the reason."""


class HeldDelivery(Protocol):
    """The part of `delivery.Delivery` that determines whether its stream still has its message."""

    reply: str
    metadata: Metadata


class Topology:
    """Ensures that these streams and their consumers exist and are correct. One per process.

    ready: set while all streams and consumers are known to exist and to have the required configuration.
    known: set while the streams have been checked since the last connection, whatever their problems. Only then is it
    known which held deliveries are current.
    on_change: called on the event loop, after a complete check, with the names of the streams that were removed,
    changed or re-created, or whose consumers were.
    on_damage: like on_change, but only for streams that may have lost messages: after a removal, or when this process
    found a stream changed and restored its configuration.
    own: the durable consumers whose ack wait this process sets. It corrects the ack wait of any other consumer only if
    that is too short, because services of two versions or with different settings may run side by side for a while.

    The topology also determines which deliveries are current. A server that lost its disk, or lost its newest messages
    in a power failure, assigns their sequences again. Settling an old delivery would then settle another message.
    """

    def __init__(
        self,
        broker: Broker,
        streams: tuple[Stream, ...],
        replicas: int,
        log: Logger,
        own: Collection[str] = (),
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self.ready = asyncio.Event()
        self.known = asyncio.Event()
        self.on_change: list[Callable[[frozenset[str]], None]] = []
        self.on_damage: list[Callable[[frozenset[str]], None]] = []
        self._broker = broker
        self._streams = streams
        self._replicas = replicas
        self._log = log
        self._own = frozenset(own)
        self._check_seconds = check_seconds
        self._lock = asyncio.Lock()
        self._logged_reason = ""
        self._wake = asyncio.Event()
        self._checks: asyncio.Task[None] | None = None
        self._names = {
            stream.name: frozenset(consumer.name for consumer in stream.consumers) for stream in self._streams
        }
        #: When each stream was created, as NATS formats it.
        self._created: dict[str, str] = {}
        #: The earliest time at which a message of each stream can have been stored, in nanoseconds since 1970.
        self._created_ns: dict[str, int] = {}
        #: The number of consecutive reports that a consumer's state is unreadable, by stream and consumer.
        self._unreadable: dict[tuple[str, str], int] = {}
        #: When each consumer was created, as NATS formats it, by stream and consumer.
        self._consumers_created: dict[tuple[str, str], str] = {}
        #: The problem of each stream that has one: a sentence.
        self._problems: dict[str, str] = {}
        #: Since when a leader has been behind the deliveries that this process holds, by stream; event-loop time.
        self._behind_since: dict[str, float] = {}
        #: Since when each stream has had a wrong configuration; event-loop time.
        self._changed_since: dict[str, float] = {}
        #: When each stream was first found missing; event-loop time.
        self._missing_since: dict[str, float] = {}
        #: When this service's turn to give streams their subjects begins; event-loop time.
        self._turn_at = float("-inf")
        self._changed: set[str] = set()
        self._damaged: set[str] = set()
        #: The number of removals that NATS has reported. One that arrives during a check may concern a stream that was
        #: already checked.
        self._removals = 0
        #: The deliveries that this process holds (see `delivery.Holder`).
        self.held: Collection[HeldDelivery] = ()
        #: The reply subjects of held deliveries whose messages are gone from their streams.
        self._lost: set[str] = set()
        # Registered from the start: a connection that breaks while a service starts must not leave it unready.
        broker.on_disconnect += [self.ready.clear, self.known.clear]
        broker.on_reconnect.append(self.ensure)

    @property
    def problem(self) -> str | None:
        """A known problem of a stream or consumer, as a sentence. None if none is known, as in a NATS outage."""
        return next(iter(self._problems.values()), None)

    def problem_of(self, stream: str) -> str | None:
        """Return the known problem of this stream or its consumers. None if none is known, as in a NATS outage."""
        return self._problems.get(stream)

    async def until_whole(self, stream: str, stopping: asyncio.Event | None = None) -> None:
        """Wait until this stream and its consumers are correct, or until `stopping` is set.

        A message that is published to a correct stream has its consumers.
        """
        async for _ in repeat(_WAIT_SECONDS, _WAIT_SECONDS, stop=stopping):
            if self.known.is_set() and stream not in self._problems:
                return

    def is_current(self, reply: str, metadata: Metadata | None = None) -> bool:
        """Return whether this reply subject settles a delivery of the current stream; False while that is unknown.

        metadata: the metadata of the delivery, if the caller has it.
        """
        if not self.known.is_set() or reply in self._lost:
            return False
        metadata = metadata or metadata_of(reply)
        return metadata is not None and metadata.stored_ns >= self._created_ns.get(metadata.stream, 0)

    async def until_known(self, stopping: asyncio.Event) -> None:
        """Wait until the streams have been checked, or until `stopping` is set.

        Must be awaited before a delivery is settled: NATS may come back from an outage with a stream of other messages.
        """
        if self.known.is_set():
            return
        waits = {asyncio.ensure_future(self.known.wait()), asyncio.ensure_future(stopping.wait())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()

    def durables_created(self) -> dict[str, str]:
        """Return when each consumer was created, as NATS formats it, by `<stream>.<consumer>`, as of the last check."""
        return {f"{stream}.{consumer}": created for (stream, consumer), created in self._consumers_created.items()}

    async def start(self) -> None:
        """Wait until every stream and consumer exists, then keep checking them until `stop`."""
        for subject in _ADVISORY_SUBJECTS:
            await self._broker.nc.direct_subscribe(subject, self._on_advisory)
        self._broker.on_missing.append(self.request_check)
        await self.ensure()
        self._checks = asyncio.create_task(self._keep_checking())

    async def stop(self) -> None:
        """Stop the regular checks."""
        if self._checks:
            self._checks.cancel()

    def request_check(self) -> None:
        """Request a check soon: NATS has reported that a stream or a consumer does not exist."""
        self._wake.set()

    async def ensure(self) -> None:
        """Check until every stream and consumer exists. Retries while JetStream is down.

        A problem of a stream other than HEIMDEX_JOBS is left to the regular checks.
        """
        async with self._lock:
            self.ready.clear()
            self.known.clear()
            async for _ in repeat(0.1, 1.0):
                if await self._check_all() and subjects.JOBS not in self._problems:
                    break

    async def _keep_checking(self) -> None:
        while True:
            await set_within(self._wake, _REPAIR_SECONDS if self._problems else self._check_seconds)
            self._wake.clear()
            if not self._broker.connected:
                continue  # `ensure` runs after the reconnection
            try:
                async with self._lock:
                    await self._check_all()
            except Exception:
                self._log.exception("topology_broken", message="unexpected error while checking the streams: retrying")
            await asyncio.sleep(_SPACING_SECONDS)

    async def _check_all(self) -> bool:
        """Check all streams and repair what is missing or wrong. Returns False if NATS did not answer all requests."""
        for stream in self._streams:
            removals = self._removals
            try:
                try:
                    await self._ensure_stream(stream)
                except Unfit as error:
                    self._broken(stream.name, str(error))
                    self._waiting(str(error))
                else:
                    if removals == self._removals:
                        self._problems.pop(stream.name, None)
                await self._find_lost(stream)
            except (BrokerUnavailable, JetStreamError) as error:
                if isinstance(error, JetStreamError) and not error.is_temporary:
                    self._broken(stream.name, f"{stream.name} cannot be used: NATS reports {str(error)!r}.")
                self._waiting(str(error))
                return False
        self.known.set()
        if not self._problems:
            self._logged_reason = ""
            self.ready.set()
        damaged, self._damaged = frozenset(self._damaged), set()
        changed, self._changed = frozenset(self._changed) | damaged, set()
        for calls, streams in ((self.on_change, changed), (self.on_damage, damaged)):
            for call in calls if streams else ():
                call(streams)
        return True

    def _waiting(self, reason: str) -> None:
        # Each reason is logged once, not at every attempt. A failed regular check of correct streams is not logged.
        if self._logged_reason == reason or (self.ready.is_set() and not self._problems):
            return
        self._logged_reason = reason
        self._log.warning("jetstream_waiting", message="JetStream is not ready: waiting for it", error=reason)

    def _on_advisory(self, subject: bytes, _: bytes, __: bytes, ___: bytes) -> None:
        """Handle `$JS.EVENT.ADVISORY.<STREAM or CONSUMER>.<action>.<stream>[.<consumer>]`."""
        tokens = subject.decode(errors="replace").split(".")
        stream, consumer = tokens[5], tokens[6] if len(tokens) > 6 else None
        if stream not in self._names or (consumer is not None and consumer not in self._names[stream]):
            return
        self._changed.add(stream)
        if tokens[4] == "DELETED":
            self._removals += 1
            self._damaged.add(stream)
            self._broken(stream, f"{_label(stream, consumer)} was removed and is being re-created.")
        self.request_check()

    def _broken(self, stream: str, sentence: str) -> None:
        self.ready.clear()
        self._problems[stream] = sentence

    async def _ensure_stream(self, stream: Stream) -> None:
        known = stream.name in self._created_ns
        try:
            info = await self._broker.api(f"STREAM.INFO.{stream.name}")
        except JetStreamError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            # A stream in memory disappears with its server. A stream on disk was removed, unless the disk was lost.
            if known and self.known.is_set() and stream.options["storage"] == "file":
                self._broken(stream.name, f"{stream.name} was removed and is being re-created.")
                self._wait_for_removal(stream.name)
            waiting = stream.config(self._replicas, (stream.waiting_subject(),))
            info = await self._configure(f"STREAM.CREATE.{stream.name}", stream.name, waiting)
            log = self._log.warning if known else self._log.info
            log("stream_created", message="created a stream", stream=stream.name)
        self._missing_since.pop(stream.name, None)
        actual = info["config"]
        if info["created"] != self._created.get(stream.name):
            if known:
                self._damaged.add(stream.name)
            self._created[stream.name] = info["created"]
            self._created_ns[stream.name] = _stored_since(info)
        if actual["num_replicas"] > 1:
            self._broker.replicated = True
        for consumer in stream.consumers:
            await self._ensure_consumer(stream, consumer)
        # An operator may have added replicas for safety: a stream keeps them.
        required = stream.required(max(self._replicas, actual["num_replicas"]))
        differs = config_drift.drift(actual, required)
        if not differs:
            self._changed_since.pop(stream.name, None)
            return
        if known and actual["subjects"] != [stream.waiting_subject()]:
            self._broken(stream.name, f"{stream.name} was changed and is being reconfigured.")
            self._leave_to_the_store(stream.name)
            self._damaged.add(stream.name)
        if "subjects" in differs:
            actual = await self._take_turn(stream.name, actual)
            differs = config_drift.drift(actual, required)
            if not differs:
                return  # another service had its turn before
        answer = await self._configure(f"STREAM.UPDATE.{stream.name}", stream.name, {**actual, **required})
        remaining = config_drift.drift(answer["config"], required)
        if remaining:
            raise Unfit(config_drift.sentence(stream.name, remaining, self._broker.server_version))
        self._log.info("stream_configured", message="configured a stream", stream=stream.name, changed=_shown(differs))

    async def _take_turn(self, stream: str, config: dict[str, Any]) -> dict[str, Any]:
        """Wait for this service's turn to give the stream its subjects. Returns the stream's configuration then.

        Services that start together must not update the subjects at the same moment. nats-server (2.12 to 2.15) may
        then subscribe to a subject twice, store each message twice, and reject every atomic batch until it is restarted
        (1 of 60 times with 8 concurrent updates).
        """
        now = asyncio.get_running_loop().time()
        if now > self._turn_at + TURN_LASTS_SECONDS:
            if subjects.STATUS_STORE in self._own:
                self._turn_at = now + random.uniform(0.0, STORES_SPREAD_SECONDS)  # noqa: S311  # not a secret
            else:
                self._turn_at = now + OTHERS_SECONDS + random.uniform(0.0, OTHERS_SPREAD_SECONDS)  # noqa: S311
        if now >= self._turn_at:
            return config
        await asyncio.sleep(self._turn_at - now)
        current: dict[str, Any] = (await self._broker.api(f"STREAM.INFO.{stream}"))["config"]
        return current

    def _leave_to_the_store(self, stream: str) -> None:
        """Raise BrokerUnavailable for OTHERS_SECONDS, except in the status store.

        The status store must notice the change, because it republishes lost messages. It therefore reconfigures the
        stream first.
        """
        if subjects.STATUS_STORE in self._own:
            return
        now = asyncio.get_running_loop().time()
        if now < self._changed_since.setdefault(stream, now) + OTHERS_SECONDS:
            raise BrokerUnavailable(f"{stream} was changed and will be reconfigured in a moment")
        del self._changed_since[stream]

    def _wait_for_removal(self, stream: str) -> None:
        """Raise BrokerUnavailable for REMOVED_SECONDS, until the server has moved a removed stream's files away.

        Before that, the server mistakes the folder of a new stream of the same name for the removed one's (seen with
        2.15.1).
        """
        now = asyncio.get_running_loop().time()
        if now < self._missing_since.setdefault(stream, now) + REMOVED_SECONDS:
            raise BrokerUnavailable(f"{stream} was removed and will be re-created in a moment")

    async def _ensure_consumer(self, stream: Stream, consumer: Consumer) -> None:
        required, label = consumer.required(), _label(stream.name, consumer.name)
        key = (stream.name, consumer.name)
        known = key in self._consumers_created
        try:
            info = await self._broker.api(f"CONSUMER.INFO.{stream.name}.{consumer.name}")
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            info = None
            if known:
                self._damaged.add(stream.name)
                self._broken(stream.name, f"{label} was removed and is being re-created.")
        actual = info["config"] if info else {}
        differs = config_drift.drift(actual, required)
        if actual and consumer.name not in self._own and actual.get("ack_wait", 0) >= required["ack_wait"]:
            differs.pop("ack_wait", None)
            required["ack_wait"] = actual["ack_wait"]
        if info is None or differs:
            call = f"CONSUMER.DURABLE.CREATE.{stream.name}.{consumer.name}"
            try:
                info = await self._configure(call, label, {**actual, **required}, stream.name)
            except JetStreamError as error:
                if error.err_code == CONSUMER_FAILED and "creating store" in str(error) and not self._broker.replicated:
                    await self._discard_state(stream.name, consumer.name)
                raise  # the next check retries
            self._unreadable.pop(key, None)
            remaining = config_drift.drift(info["config"], required)
            if remaining:
                raise Unfit(config_drift.sentence(label, remaining, self._broker.server_version))
            log = self._log.warning if known and not actual else self._log.info
            log(
                "consumer_configured",
                message="configured a consumer" if actual else "created a consumer",
                stream=stream.name,
                consumer=consumer.name,
                changed=_shown(differs) if actual else {},
            )
        if known and info["created"] != self._consumers_created[key]:
            self._damaged.add(stream.name)
        self._consumers_created[key] = info["created"]

    async def _discard_state(self, stream: str, consumer: str) -> None:
        """Make the server delete a consumer's unreadable files, after UNREADABLE_TIMES consecutive errors.

        nats-server 2.12 deletes them itself; 2.14 and 2.15 reject the consumer permanently. A temporary consumer of the
        same name, which stores nothing, replaces it for a second: when the server removes that one, it deletes the
        files. The server rejects the temporary consumer if the real one exists.
        """
        key = (stream, consumer)
        self._unreadable[key] = self._unreadable.get(key, 0) + 1
        if self._unreadable[key] < UNREADABLE_TIMES:
            return
        del self._unreadable[key]
        self._log.error(
            "consumer_discarded",
            message="the server cannot read a consumer's state: the consumer is re-created and redelivers messages",
            stream=stream,
            consumer=consumer,
        )
        temporary = {
            "name": consumer,
            "direct": True,
            "deliver_subject": f"heimdex-not-ready.{stream}.{consumer}",
            "deliver_policy": "new",
            "ack_policy": "none",
            "max_deliver": 1,
            "inactive_threshold": NANOSECOND,
        }
        body = {"stream_name": stream, "action": "create", "config": temporary}
        await self._broker.api(f"CONSUMER.CREATE.{stream}.{consumer}", body)

    async def _configure(
        self, call: str, label: str, config: dict[str, Any], consumer_of: str | None = None
    ) -> dict[str, Any]:
        """Create or update a stream, or a consumer of the stream `consumer_of`. Returns its info.

        Raises Unfit when NATS rejects the configuration permanently, JetStreamError or BrokerUnavailable.
        """
        config = without_none(config)
        body = {"stream_name": consumer_of, "config": config} if consumer_of else config
        try:
            return await self._broker.api(call, body, timeout=10)
        except JetStreamError as error:
            if error.is_temporary or error.err_code in {NAME_IN_USE, CONSUMER_FAILED}:
                raise  # another service is creating it at this moment, or the next check gets a clearer error
            hint = _MAX_BYTES_HINT if error.err_code == MAX_BYTES_REQUIRED else ""
            raise Unfit(f"{label} cannot be configured as it must be: NATS reports {str(error)!r}.{hint}") from None

    async def _find_lost(self, stream: Stream) -> None:
        """Determine which held deliveries have lost their messages. Checks from the newest message to the oldest.

        An existing message proves that all older ones exist. The check therefore needs one request, unless the server
        lost its newest messages. Raises LeaderBehind while the stream's leader may still apply them.
        """
        created = self._created_ns.get(stream.name)
        if not self.held or self.known.is_set() or created is None or stream.options["storage"] != "file":
            return  # a stream in memory is a new one after each restart of its server
        newest_first = sorted(
            (
                delivery
                for delivery in self.held
                if delivery.metadata.stream == stream.name and delivery.metadata.stored_ns >= created
            ),
            key=lambda delivery: delivery.metadata.sequence,
            reverse=True,
        )
        lost: list[str] = []
        for delivery in newest_first:
            if await exists(self._broker, delivery.metadata):
                break
            lost.append(delivery.reply)
        if lost and self._broker.replicated:
            await self._wait_for_leader(stream.name, newest_first[0].metadata.sequence)
        if lost:
            self._lost.update(lost)
            self._log.warning(
                "deliveries_lost",
                message="held messages are gone from their stream: their deliveries are not settled",
                stream=stream.name,
                count=len(lost),
            )

    async def _wait_for_leader(self, stream: str, sequence: int) -> None:
        """Raise LeaderBehind while the leader is behind this sequence, at most for BEHIND_SECONDS.

        After that time the leader has lost the message.
        """
        now = asyncio.get_running_loop().time()
        applied = await self._broker.last_sequence(stream)
        if applied >= sequence:
            self._behind_since.pop(stream, None)
            return
        since = self._behind_since.setdefault(stream, now)
        if now - since < BEHIND_SECONDS:
            raise LeaderBehind(
                f"the leader of {stream} is at sequence {applied}, before {sequence}, which was delivered"
            )
        self._behind_since.pop(stream)


async def exists(broker: Broker, metadata: Metadata) -> bool:
    """Return whether the stream still has this message, and not another one at its sequence.

    It then has all older messages too: a server loses its newest ones. Raises BrokerUnavailable or JetStreamError.
    """
    try:
        answer = await broker.api(f"STREAM.MSG.GET.{metadata.stream}", {"seq": metadata.sequence})
    except JetStreamError as error:
        if error.err_code != NO_MESSAGE:
            raise
        return False
    return _nanoseconds(answer["message"]["time"]) == metadata.stored_ns


def _stored_since(info: dict[str, Any]) -> int:
    """Return the earliest time at which a message of this stream can have been stored, in nanoseconds since 1970.

    This may be before the stream's creation: a server that cannot read a stream's configuration forgets the stream, but
    keeps its messages for the stream that is created in its place.
    """
    created, state = _nanoseconds(info["created"]), info["state"]
    return min(created, _nanoseconds(state["first_ts"])) if state["messages"] else created


def _label(stream: str, consumer: str | None) -> str:
    return stream if consumer is None else f"The consumer {consumer} of {stream}"


def _shown(differs: config_drift.Drift) -> dict[str, list[Any]]:
    """Return the old and the new value of each field, for the log."""
    return {name: list(values) for name, values in differs.items()}


def _nanoseconds(moment: str) -> int:
    """Parse an RFC 3339 time with up to nine fractional digits. Returns nanoseconds since 1970."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * NANOSECOND + int((fraction or "0").ljust(9, "0")[:9])
