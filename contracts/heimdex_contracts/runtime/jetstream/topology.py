"""Makes sure that the streams and their consumers exist and are configured as this project relies on.

At start, after every reconnection, every few seconds, and at once when NATS says that one was removed or changed.
Whoever notices repairs it.

Topology before traffic: a message that no consumer was there for is acknowledged to its publisher and dropped. So
an interest stream is created on a subject that nobody uses, its consumers are added, and only then it gets its own.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Final, Protocol

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, LeaderBehind
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

#: How often everything is looked at although NATS has said nothing.
LOOK_SECONDS: Final = 10.0
#: How often everything is looked at while something is known to be wrong.
_REPAIR_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 0.05
#: How often in a row the server must say that it cannot read a consumer's state, before that is given up.
UNREADABLE_TIMES: Final = 4
#: How long the status store has to configure a stream again, before another service does.
OTHERS_SECONDS: Final = 1.0
#: Between the removal of a stream and its next creation.
REMOVED_SECONDS: Final = 2.0
#: Of two looks that NATS asks for, the second one waits this long, and sees what came in between too.
_SPACING_SECONDS: Final = 0.1

_MAX_BYTES_HINT: Final = (
    " A limit on a stream of jobs would discard jobs: give the account no max_bytes_required (nats account edit)."
)

ADVISORIES: Final = "$JS.EVENT.ADVISORY"
#: What NATS says of every stream and consumer of the account.
_ADVISED: Final = (
    f"{ADVISORIES}.STREAM.DELETED.*",
    f"{ADVISORIES}.STREAM.UPDATED.*",
    f"{ADVISORIES}.CONSUMER.DELETED.*.*",
)


class Unfit(HeimdexError):
    """A stream or a consumer that NATS does not configure as it must be; the text says what to do."""


class HeldDelivery(Protocol):
    """Of a `delivery.Delivery`, what is needed to find out whether its stream still has its message."""

    reply: str
    metadata: Metadata


class Topology:
    """Ensures these streams on one connection.

    ready: set while all of them are known to be there, and as they must be.
    known: set while it is known of which streams the deliveries are that this process holds, whatever is wrong.
    on_change: called, on the event loop, with the names of the streams that were removed, changed or made again, or
    whose consumers were, once all is as it must be again.

    on_damage: the same, only where messages may have been lost by it: after a removal, or where this process found a
    stream changed and configured it again.

    Knows, too, which deliveries are of the streams as they are: a server that lost its disk, or with its power its
    newest messages, gives sequences anew, and an answer to a delivery of before would settle a stranger's message.

    own: the durables whose lease is this process's to set. Of another's it repairs only one that is too short, since
    two versions or settings of the services may run side by side for a while.
    """

    def __init__(
        self,
        broker: Broker,
        streams: tuple[Stream, ...],
        replicas: int,
        log: Logger,
        own: Collection[str] = (),
        look_seconds: float = LOOK_SECONDS,
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
        self._look_seconds = look_seconds
        self._lock = asyncio.Lock()
        self._said = ""
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._names = {
            stream.name: frozenset(consumer.name for consumer in stream.consumers) for stream in self._streams
        }
        #: When each stream was created, as NATS writes it; and before which no message of it was stored, in ns.
        self._created: dict[str, str] = {}
        self._created_ns: dict[str, int] = {}
        #: How often in a row the server has said that it cannot read a consumer's state, by stream and name.
        self._unreadable: dict[tuple[str, str], int] = {}
        #: When each consumer was created, as NATS writes it, by stream and name.
        self._consumers_created: dict[tuple[str, str], str] = {}
        #: What is wrong with each stream that is not as it must be: a sentence.
        self._problems: dict[str, str] = {}
        #: Since when a leader has been behind the deliveries that this process holds, by stream; event-loop time.
        self._behind_since: dict[str, float] = {}
        #: Since when each stream has been seen to be configured otherwise; event-loop time.
        self._changed_since: dict[str, float] = {}
        #: When each stream was first seen to be missing; event-loop time.
        self._missing_since: dict[str, float] = {}
        self._changed: set[str] = set()
        self._damaged: set[str] = set()
        #: How many removals NATS has told of: one that comes during a look may be of what was looked at already.
        self._removals = 0
        #: The deliveries that this process holds (see `delivery.Holder`).
        self.held: Collection[HeldDelivery] = ()
        #: Those of them whose messages the streams turned out not to have any more.
        self._lost: set[str] = set()
        # Both from the beginning: a connection that breaks while a service still starts must not leave it unready.
        broker.on_disconnect += [self.ready.clear, self.known.clear]
        broker.on_reconnect.append(self.ensure)

    @property
    def problem(self) -> str | None:
        """What is known to be missing or wrong, as a sentence; None also where nothing is known, since NATS is away."""
        return next(iter(self._problems.values()), None)

    def problem_of(self, stream: str) -> str | None:
        """What is known to be wrong with this stream or its consumers; None as above."""
        return self._problems.get(stream)

    async def until_whole(self, stream: str) -> None:
        """Return when this stream and its consumers are as they must be: what is published then, somebody takes."""
        while not self.known.is_set() or stream in self._problems:  # noqa: ASYNC110  # rare, and one of many streams
            await asyncio.sleep(_WAIT_SECONDS)

    def is_current(self, reply: str, place: Metadata | None = None) -> bool:
        """Whether this reply subject answers a delivery of a stream as it is now; False while that is not known.

        place: that of the delivery, where the caller has it.
        """
        if not self.known.is_set() or reply in self._lost:
            return False
        place = place or metadata_of(reply)
        return place is not None and place.stored_ns >= self._created_ns.get(place.stream, 0)

    async def until_known(self, stopping: asyncio.Event) -> None:
        """Until it is known which streams are there, or `stopping` is set.

        To be awaited before a delivery is settled: NATS may come back with a stream that has other messages.
        """
        if self.known.is_set():
            return
        waits = {asyncio.ensure_future(self.known.wait()), asyncio.ensure_future(stopping.wait())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()

    def durables_created(self) -> dict[str, str]:
        """When each consumer was created, as NATS writes it, by `<stream>.<consumer>`; as of the newest look."""
        return {f"{stream}.{consumer}": created for (stream, consumer), created in self._consumers_created.items()}

    async def start(self) -> None:
        """Return when every stream and consumer exists; go on looking after them until `stop`."""
        for subject in _ADVISED:
            await self._broker.nc.direct_subscribe(subject, self._on_advisory)
        self._broker.on_missing.append(self.look)
        await self.ensure()
        self._looking = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        """Look no more."""
        if self._looking:
            self._looking.cancel()

    def look(self) -> None:
        """Look soon: somebody was answered that a stream or a consumer is not there."""
        self._wake.set()

    async def ensure(self) -> None:
        """Return when every stream and consumer exists; wait and try again while JetStream is not there yet.

        Of the streams but HEIMDEX_JOBS, one that cannot be had is left to the looks that follow.
        """
        async with self._lock:
            self.ready.clear()
            self.known.clear()
            delay = 0.1
            while not await self._look_through() or subjects.JOBS in self._problems:
                await asyncio.sleep(delay)
                delay = min(1.0, delay * 2)

    async def _look_after(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_REPAIR_SECONDS if self._problems else self._look_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._broker.connected:
                continue  # the reconnection ensures everything
            try:
                async with self._lock:
                    await self._look_through()
            except Exception:
                self._log.exception("topology_broken", message="a look at the streams failed; the next one follows")
            await asyncio.sleep(_SPACING_SECONDS)

    async def _look_through(self) -> bool:
        """Repair what is missing or wrong. False where NATS did not answer: nothing follows from that."""
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
                    self._broken(stream.name, f"{stream.name} cannot be used: NATS says {str(error)!r}.")
                self._waiting(str(error))
                return False
        self.known.set()
        if not self._problems:
            self._said = ""
            self.ready.set()
        damaged, self._damaged = frozenset(self._damaged), set()
        changed, self._changed = frozenset(self._changed) | damaged, set()
        for calls, streams in ((self.on_change, changed), (self.on_damage, damaged)):
            for call in calls if streams else ():
                call(streams)
        return True

    def _waiting(self, reason: str) -> None:
        # The same reason is said once, not at every try; and not at all where a look that nobody waits for is late.
        if self._said == reason or (self.ready.is_set() and not self._problems):
            return
        self._said = reason
        self._log.warning("jetstream_waiting", message="JetStream is not ready: waiting for it", error=reason)

    def _on_advisory(self, subject: bytes, _: bytes, __: bytes, ___: bytes) -> None:
        """`$JS.EVENT.ADVISORY.<STREAM or CONSUMER>.<action>.<stream>[.<consumer>]`."""
        tokens = subject.decode(errors="replace").split(".")
        stream, consumer = tokens[5], tokens[6] if len(tokens) > 6 else None
        if stream not in self._names or (consumer is not None and consumer not in self._names[stream]):
            return
        self._changed.add(stream)
        if tokens[4] == "DELETED":
            self._removals += 1
            self._damaged.add(stream)
            self._broken(stream, f"{_called(stream, consumer)} was removed, and is being made again.")
        self.look()

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
            # A stream in memory ends with its server. Another one was removed, unless the server has lost its disk.
            if known and self.known.is_set() and stream.options["storage"] == "file":
                self._broken(stream.name, f"{stream.name} was removed, and is being made again.")
                self._wait_for_removal(stream.name)
            waiting = stream.config(self._replicas, (stream.waiting_subject(),))
            info = await self._configure(f"STREAM.CREATE.{stream.name}", stream.name, waiting)
            say = self._log.warning if known else self._log.info
            say("stream_created", message="created a stream", stream=stream.name)
        self._missing_since.pop(stream.name, None)
        found = info["config"]
        if info["created"] != self._created.get(stream.name):
            if known:
                self._damaged.add(stream.name)
            self._created[stream.name] = info["created"]
            self._created_ns[stream.name] = _stored_since(info)
        if found["num_replicas"] > 1:
            self._broker.replicated = True
        for consumer in stream.consumers:
            await self._ensure_consumer(stream, consumer)
        # A stream that somebody gave more copies keeps them: it was for safety.
        wanted = stream.required(max(self._replicas, found["num_replicas"]))
        differs = config_drift.drift(found, wanted)
        if not differs:
            self._changed_since.pop(stream.name, None)
            return
        if known and found["subjects"] != [stream.waiting_subject()]:
            self._broken(stream.name, f"{stream.name} was changed, and is being configured again.")
            self._leave_to_the_store(stream.name)
            self._damaged.add(stream.name)
        answer = await self._configure(f"STREAM.UPDATE.{stream.name}", stream.name, {**found, **wanted})
        left = config_drift.drift(answer["config"], wanted)
        if left:
            raise Unfit(config_drift.sentence(stream.name, left, self._broker.server_version))
        self._log.info("stream_configured", message="configured a stream", stream=stream.name, changed=_shown(differs))

    def _leave_to_the_store(self, stream: str) -> None:
        """Raise BrokerUnavailable for a second: the status store, which has to know of it, configures it first."""
        if subjects.STATUS_STORE in self._own:
            return
        now = asyncio.get_running_loop().time()
        if now < self._changed_since.setdefault(stream, now) + OTHERS_SECONDS:
            raise BrokerUnavailable(f"{stream} was changed, and is configured again in a moment")
        del self._changed_since[stream]

    def _wait_for_removal(self, stream: str) -> None:
        """Raise BrokerUnavailable until the server has surely moved away what it kept of a removed stream.

        Until then (seen with 2.15.1) it takes the folder of a new stream of this name for the old one's.
        """
        now = asyncio.get_running_loop().time()
        if now < self._missing_since.setdefault(stream, now) + REMOVED_SECONDS:
            raise BrokerUnavailable(f"{stream} was removed, and is made again in a moment")

    async def _ensure_consumer(self, stream: Stream, consumer: Consumer) -> None:
        wanted, called = consumer.required(), _called(stream.name, consumer.name)
        place = (stream.name, consumer.name)
        known = place in self._consumers_created
        try:
            info = await self._broker.api(f"CONSUMER.INFO.{stream.name}.{consumer.name}")
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            info = None
            if known:
                self._damaged.add(stream.name)
                self._broken(stream.name, f"{called} was removed, and is being made again.")
        found = info["config"] if info else {}
        differs = config_drift.drift(found, wanted)
        if found and consumer.name not in self._own and found.get("ack_wait", 0) >= wanted["ack_wait"]:
            differs.pop("ack_wait", None)
            wanted["ack_wait"] = found["ack_wait"]
        if info is None or differs:
            call = f"CONSUMER.DURABLE.CREATE.{stream.name}.{consumer.name}"
            try:
                info = await self._configure(call, called, {**found, **wanted}, stream.name)
            except JetStreamError as error:
                if error.err_code == CONSUMER_FAILED and "creating store" in str(error) and not self._broker.replicated:
                    await self._discard_state(stream.name, consumer.name)
                raise  # and all is looked at again
            self._unreadable.pop(place, None)
            left = config_drift.drift(info["config"], wanted)
            if left:
                raise Unfit(config_drift.sentence(called, left, self._broker.server_version))
            say = self._log.warning if known and not found else self._log.info
            say(
                "consumer_configured",
                message="configured a consumer" if found else "created a consumer",
                stream=stream.name,
                consumer=consumer.name,
                changed=_shown(differs) if found else {},
            )
        if known and info["created"] != self._consumers_created[place]:
            self._damaged.add(stream.name)
        self._consumers_created[place] = info["created"]

    async def _discard_state(self, stream: str, consumer: str) -> None:
        """Have the server remove a consumer's files that it cannot read, once it has said so some times in a row.

        nats-server 2.12 does so itself; 2.14 and 2.15 refuse the consumer for good. A consumer of the same name that
        keeps nothing takes its place for a second: when the server removes that one, it removes the files. The server
        refuses this where the consumer exists.
        """
        place = (stream, consumer)
        self._unreadable[place] = self._unreadable.get(place, 0) + 1
        if self._unreadable[place] < UNREADABLE_TIMES:
            return
        del self._unreadable[place]
        self._log.error(
            "consumer_discarded",
            message="the server cannot read what it stored of a consumer: it is made again, and redelivers",
            stream=stream,
            consumer=consumer,
        )
        stand_in = {
            "name": consumer,
            "direct": True,
            "deliver_subject": f"heimdex-not-ready.{stream}.{consumer}",
            "deliver_policy": "new",
            "ack_policy": "none",
            "max_deliver": 1,
            "inactive_threshold": NANOSECOND,
        }
        body = {"stream_name": stream, "action": "create", "config": stand_in}
        await self._broker.api(f"CONSUMER.CREATE.{stream}.{consumer}", body)

    async def _configure(
        self, call: str, called: str, config: dict[str, Any], of_stream: str | None = None
    ) -> dict[str, Any]:
        """Create or update. Raises Unfit where NATS refuses it for good, JetStreamError or BrokerUnavailable."""
        config = without_none(config)
        body = {"stream_name": of_stream, "config": config} if of_stream else config
        try:
            return await self._broker.api(call, body, timeout=10)
        except JetStreamError as error:
            if error.is_temporary or error.err_code in {NAME_IN_USE, CONSUMER_FAILED}:
                raise  # somebody else is making it at this moment, or the next look knows more
            hint = _MAX_BYTES_HINT if error.err_code == MAX_BYTES_REQUIRED else ""
            raise Unfit(f"{called} cannot be configured as it must be: NATS says {str(error)!r}.{hint}") from None

    async def _find_lost(self, stream: Stream) -> None:
        """Ask for the held messages, newest first: one that is there vouches for all before it.

        So it costs one request, unless the server came back as it was some moments before. Raises LeaderBehind while
        the stream's leader may still come to know them.
        """
        created = self._created_ns.get(stream.name)
        if not self.held or self.known.is_set() or created is None or stream.options["storage"] != "file":
            return  # what was in memory is a stream of its own each time
        places = [(delivery.metadata, delivery.reply) for delivery in self.held]
        mine = [(place, reply) for place, reply in places if place.stream == stream.name and place.stored_ns >= created]
        newest_first = sorted(mine, key=lambda entry: entry[0].sequence, reverse=True)
        lost: list[str] = []
        for place, reply in newest_first:
            if await self._has(place):
                break
            lost.append(reply)
        if lost and self._broker.replicated:
            await self._wait_for_leader(stream.name, newest_first[0][0].sequence)
        if lost:
            self._lost.update(lost)
            self._log.warning(
                "deliveries_lost",
                message="held messages are gone from their stream: they are not answered",
                stream=stream.name,
                count=len(lost),
            )

    async def _wait_for_leader(self, stream: str, sequence: int) -> None:
        """Raise LeaderBehind while the leader is before this sequence, for BEHIND_SECONDS: then it has lost it."""
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

    async def _has(self, place: Metadata) -> bool:
        try:
            found = await self._broker.api(f"STREAM.MSG.GET.{place.stream}", {"seq": place.sequence})
        except JetStreamError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return False
        return _nanoseconds(found["message"]["time"]) == place.stored_ns


def _stored_since(info: dict[str, Any]) -> int:
    """Before which no message of this stream was stored, in nanoseconds.

    A server that cannot read a stream's configuration forgets the stream, and what it had stored is in the one that is
    created in its place.
    """
    created, state = _nanoseconds(info["created"]), info["state"]
    return min(created, _nanoseconds(state["first_ts"])) if state["messages"] else created


def _called(stream: str, consumer: str | None) -> str:
    return stream if consumer is None else f"The consumer {consumer} of {stream}"


def _shown(differs: config_drift.Drift) -> dict[str, list[Any]]:
    """For the log: what each field was, and what it is now."""
    return {name: list(values) for name, values in differs.items()}


def _nanoseconds(moment: str) -> int:
    """RFC 3339 with up to nine digits of a second."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * NANOSECOND + int((fraction or "0").ljust(9, "0")[:9])
