"""Makes sure that the streams and their consumers exist: at start, and again after every reconnection.

Topology before traffic: a message that no consumer was there for is acknowledged to its publisher and dropped. So
an interest stream is created on a subject that nobody uses, its consumers are added, and only then it gets its own.
"""

import asyncio
from collections.abc import Collection
from datetime import datetime
from typing import Any

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.broker import CONSUMER_NOT_FOUND, NO_MESSAGE, STREAM_NOT_FOUND, Broker, JetStreamError
from heimdex_contracts.runtime.delivered import Place, place_of
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.subjects import NANOSECOND, Consumer, Stream


class Topology:
    """Ensures these streams on one connection; `ready` is set while they are known to exist.

    Knows, too, which deliveries are of the streams as they are: a server that lost its disk, or with its power its
    newest messages, gives sequences anew, and an answer to a delivery of before would settle a stranger's message.
    """

    def __init__(self, broker: Broker, streams: tuple[Stream, ...], replicas: int, log: Logger) -> None:
        self.ready = asyncio.Event()
        self._broker = broker
        self._streams = streams
        self._replicas = replicas
        self._log = log
        self._lock = asyncio.Lock()
        self._said = ""
        #: When each stream was created, in nanoseconds.
        self._created_ns: dict[str, int] = {}
        #: The answer subjects of the deliveries that this process holds: Leases keeps them.
        self.held: Collection[str] = ()
        #: Those of them whose messages the streams turned out not to have any more.
        self._lost: set[str] = set()
        # Both from the beginning: a connection that breaks while a service still starts must not leave it unready.
        broker.on_disconnect.append(self.ready.clear)
        broker.on_reconnect.append(self.ensure)

    def is_current(self, reply: str, place: Place | None = None) -> bool:
        """Whether this reply subject answers a delivery of a stream as it is now; False while that is not known.

        place: that of the delivery, where the caller has it.
        """
        if not self.ready.is_set() or reply in self._lost:
            return False
        place = place or place_of(reply)
        return place is not None and place.stored_ns >= self._created_ns.get(place.stream, 0)

    async def ensure(self) -> None:
        """Return when every stream and consumer exists. Waits and tries again while JetStream is not there yet."""
        async with self._lock:
            self.ready.clear()
            pause = 0.1
            while True:
                try:
                    for stream in self._streams:
                        await self._ensure_stream(stream)
                        await self._find_lost(stream)
                except (BrokerUnavailable, JetStreamError) as error:
                    # The same reason is said once, not at every try.
                    if self._said != str(error):
                        self._said = str(error)
                        self._log.warning(
                            "jetstream_waiting",
                            message="JetStream is not ready: waiting for it",
                            error=str(error),
                        )
                    await asyncio.sleep(pause)
                    pause = min(1.0, pause * 2)
                else:
                    self._said = ""
                    self.ready.set()
                    return

    async def _ensure_stream(self, stream: Stream) -> None:
        try:
            info = await self._broker.api(f"STREAM.INFO.{stream.name}")
        except JetStreamError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            waiting = stream.config(self._replicas, (stream.waiting_subject(),))
            info = await self._broker.api(f"STREAM.CREATE.{stream.name}", waiting, timeout=10)
            self._log.info("stream_created", message="created a stream", stream=stream.name)
        found = info["config"]
        self._created_ns[stream.name] = _nanoseconds(info["created"])
        for consumer in stream.consumers:
            await self._ensure_consumer(stream, consumer)
        wanted = stream.config(self._replicas)
        if not _covers(found, wanted):
            await self._broker.api(f"STREAM.UPDATE.{stream.name}", {**found, **wanted}, timeout=10)
            self._log.info("stream_configured", message="configured a stream", stream=stream.name)

    async def _find_lost(self, stream: Stream) -> None:
        """Ask for the held messages, newest first: one that is there vouches for all before it.

        So it costs one request, unless the server came back as it was some moments before.
        """
        if not self.held or stream.options["storage"] != "file":
            return  # what was in memory is a stream of its own each time
        created = self._created_ns[stream.name]
        places = [(place, reply) for reply in self.held if (place := place_of(reply)) is not None]
        mine = [(place, reply) for place, reply in places if place.stream == stream.name and place.stored_ns >= created]
        lost = 0
        for place, reply in sorted(mine, key=lambda entry: entry[0].sequence, reverse=True):
            if await self._has(place):
                break
            self._lost.add(reply)
            lost += 1
        if lost:
            self._log.warning(
                "deliveries_lost",
                message="held messages are gone from their stream: they are not answered",
                stream=stream.name,
                count=lost,
            )

    async def _has(self, place: Place) -> bool:
        try:
            found = await self._broker.api(f"STREAM.MSG.GET.{place.stream}", {"seq": place.sequence})
        except JetStreamError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return False
        return _nanoseconds(found["message"]["time"]) == place.stored_ns

    async def _ensure_consumer(self, stream: Stream, consumer: Consumer) -> None:
        wanted = consumer.config()
        try:
            found = (await self._broker.api(f"CONSUMER.INFO.{stream.name}.{consumer.name}"))["config"]
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            found = {}
        if not _covers(found, wanted):
            body = {"stream_name": stream.name, "config": {**found, **wanted}}
            await self._broker.api(f"CONSUMER.DURABLE.CREATE.{stream.name}.{consumer.name}", body, timeout=10)
            self._log.info(
                "consumer_configured",
                message="configured a consumer",
                stream=stream.name,
                consumer=consumer.name,
            )


def _covers(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the server's configuration already says all that we want of it."""
    return all(found.get(name) == value for name, value in wanted.items())


def _nanoseconds(moment: str) -> int:
    """RFC 3339 with up to nine digits of a second."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * NANOSECOND + int((fraction or "0").ljust(9, "0")[:9])
