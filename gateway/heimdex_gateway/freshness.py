"""How far the status store is behind the stream: whether Postgres alone may answer.

Postgres answers as long as the store keeps up. Where it does not, or where an answer was given from the stream, both
are read, so that no answer is older than one already given: an event is in the stream until Postgres has it.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.broker import Broker, JetStreamError

#: How old the knowledge may get while GETs come: it is renewed beside them, or by them when it is older still.
RENEW_AFTER_SECONDS: Final = 0.5
TOO_OLD_SECONDS: Final = 2.0
#: A store that takes longer than this to record a message is behind; less is its ordinary batch.
BEHIND_AFTER_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the status store's consumer of one stream has got to, as stream sequences.

    floor: everything up to here is recorded. contiguous: nothing past the floor is.
    """

    floor: int
    delivered: int
    last: int
    contiguous: bool

    def has_not(self, sequence: int) -> bool:
        """Proof that neither this message nor any later one had been acknowledged by the store."""
        return sequence > self.delivered or (sequence > self.floor and self.contiguous)


async def recorded(broker: Broker, stream: str) -> Recorded:
    """Ask the broker. Raises BrokerUnavailable or JetStreamError."""
    info: dict[str, Any] = await broker.api(f"CONSUMER.INFO.{stream}.{subjects.STATUS_STORE}", timeout=1.0)
    floor, delivered, unacknowledged = info["ack_floor"], info["delivered"], info["num_ack_pending"]
    behind = unacknowledged + info["num_pending"]
    return Recorded(
        # With nothing outstanding the floor is as far as was delivered, even where messages in between are gone.
        floor=delivered["stream_seq"] if unacknowledged == 0 else floor["stream_seq"],
        delivered=delivered["stream_seq"],
        last=delivered["stream_seq"] + info["num_pending"] if behind else 0,
        contiguous=delivered["consumer_seq"] - floor["consumer_seq"] == unacknowledged,
    )


class Freshness:
    """Of one gateway; asks the broker while GETs come, and only then."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._asked_at = -1e9
        self._asking: asyncio.Task[None] | None = None
        self._behind = False
        #: Where the store had to get to, as seen at which time: (time, sequence), a stream.
        self._goals: dict[str, tuple[float, int]] = {}
        #: The newest sequences that an answer was given from.
        self._told: dict[str, int] = {}

    def told(self, stream: str, sequence: int) -> None:
        """An answer was given from this message: until the store has it, Postgres alone may not answer."""
        self._told[stream] = max(sequence, self._told.get(stream, 0))

    async def postgres_suffices(self) -> bool:
        """Whether Postgres' answer is not older than one already given, as far as is known by now."""
        loop = asyncio.get_running_loop()
        age = loop.time() - self._asked_at
        if age > RENEW_AFTER_SECONDS and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._done)
        if age > TOO_OLD_SECONDS and self._asking is not None:
            await asyncio.wait({self._asking})
        return not self._behind and not self._told

    def _done(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        behind = False
        try:
            for stream in (subjects.JOBS, subjects.PROGRESS):
                state = await recorded(self._broker, stream)
                now = loop.time()
                seen_at, goal = self._goals.get(stream, (now, 0))
                if state.floor >= goal:
                    self._goals[stream] = (now, state.last)
                elif now - seen_at > BEHIND_AFTER_SECONDS:
                    behind = True
                if state.floor >= self._told.get(stream, 0):
                    self._told.pop(stream, None)
        except (BrokerUnavailable, JetStreamError):
            return  # what was known holds until more is known
        finally:
            self._asked_at = loop.time()
        self._behind = behind
