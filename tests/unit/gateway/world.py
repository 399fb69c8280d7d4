"""A hand-written model of the system behind the gateway: one job's messages in NATS, the status store, Postgres.

It keeps the same rules as the real ones (interest retention, one tick a subject, acknowledgement after the commit, a
tick waits until its hand-over is recorded), and moves on at random whenever the gateway waits for an answer: every
interleaving may happen. But one: Postgres never goes down between a commit and its acknowledgements, when the stream
cannot show that the commit happened.
"""

import asyncio
from collections.abc import Collection
from random import Random
from typing import Any

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.lifecycle import Snapshot, merge, snapshot
from heimdex_contracts.messages import AnyMessage, AttemptFailed, Progress
from heimdex_contracts.runtime.jetstream.connection import Stored
from heimdex_gateway.jobs.repository import DatabaseUnavailable


class _Stream:
    """A stream and the position of the store's consumer on it."""

    def __init__(self) -> None:
        self.sequence = 0
        #: How far the stream's leader has got, which answers what is asked of the stream. Its consumer may be ahead.
        self.applied = 0
        self.kept: dict[int, AnyMessage] = {}
        #: In order: [stream sequence, event, acknowledged].
        self.deliveries: list[tuple[int, AnyMessage]] = []
        self.recorded: set[int] = set()
        self.acknowledged: set[int] = set()
        self.delivered_up_to = 0

    def publish(self, event: AnyMessage) -> int:
        # Whoever publishes a successor was answered for the message before.
        self.applied = self.sequence
        self.sequence += 1
        self.kept[self.sequence] = event
        return self.sequence

    def apply(self) -> None:
        self.applied = self.sequence

    def undelivered(self) -> list[int]:
        return [sequence for sequence in sorted(self.kept) if sequence > self.delivered_up_to]

    def deliver(self) -> None:
        for sequence in self.undelivered()[:1]:
            self.delivered_up_to = sequence
            self.deliveries.append((sequence, self.kept[sequence]))

    def info(self) -> dict[str, Any]:
        outstanding = [sequence for sequence, _ in self.deliveries if sequence not in self.acknowledged]
        floor = 0
        for position, (sequence, _) in enumerate(self.deliveries):
            if sequence not in self.acknowledged:
                break
            floor = position + 1
        return {
            "delivered": {"stream_seq": self.delivered_up_to, "consumer_seq": len(self.deliveries)},
            "ack_floor": {
                "stream_seq": self.deliveries[floor - 1][0] if floor else 0,
                "consumer_seq": floor,
            },
            "num_ack_pending": len(outstanding),
            "num_pending": len(self.undelivered()),
        }


class World:
    """Publishes these events of one job, in order; stands in for the gateway's broker and its database."""

    def __init__(
        self,
        events: list[AnyMessage],
        random: Random,
        outages: bool = True,
        time_passes: bool = True,
        replicated: bool = False,
    ) -> None:
        self.events = list(events)
        self.random = random
        self.outages = outages
        self.time_passes = time_passes
        self.replicated = replicated
        self.job_id = events[0].job_id
        self.row: Snapshot | None = None
        self.postgres_up = self.store_up = True
        self.streams = {subjects.JOBS: _Stream(), subjects.PROGRESS: _Stream(), subjects.ATTEMPTS: _Stream()}
        self.seconds = 0.0
        self._worker_holds: int | None = None
        self._last_on_jobs = 0

    @property
    def over(self) -> bool:
        return not self.events

    def publish_next(self) -> None:
        """Publish the next event as the worker (or at first, the gateway) does, then settle its delivery."""
        if not self.events:
            return
        event = self.events.pop(0)
        if isinstance(event, Progress):
            stream = self.streams[subjects.PROGRESS]
            for sequence, older in list(stream.kept.items()):
                if older.stage == event.stage:  # one message a subject
                    del stream.kept[sequence]
            stream.publish(event)
            return
        if isinstance(event, AttemptFailed):
            self.streams[subjects.ATTEMPTS].publish(event)
            return
        follows, self._last_on_jobs = self._last_on_jobs, self.streams[subjects.JOBS].publish(event)
        if follows:
            self._worker_holds = None
            self._drop(follows)
        self._worker_holds = self._last_on_jobs if isinstance(event, messages.Due) else None

    def record(self) -> None:
        """Commit the store's deliveries: no lower ranks; of attempt events, only those of the row's own step."""
        if not (self.store_up and self.postgres_up):
            return
        batch = [
            (stream, sequence, event)
            for stream in self.streams.values()
            for sequence, event in stream.deliveries
            if sequence not in stream.recorded
        ]
        for stream, sequence, event in batch:
            seen = snapshot(event)
            if isinstance(event, (Progress, AttemptFailed)) and (self.row is None or self.row.step < event.step):
                continue
            stream.recorded.add(sequence)
            if self.row is None:
                self.row = seen
            elif seen.rank >= self.row.rank:
                self.row = merge(self.row, seen)

    def acknowledge(self) -> None:
        """Acknowledge everything that was committed before."""
        for name, stream in self.streams.items():
            for sequence in stream.recorded - stream.acknowledged:
                stream.acknowledged.add(sequence)
                if name == subjects.JOBS:
                    self._drop(sequence)

    def _drop(self, sequence: int) -> None:
        """Remove a message once both of its consumers have acknowledged it (interest retention)."""
        jobs = self.streams[subjects.JOBS]
        if sequence in jobs.acknowledged and sequence != self._worker_holds:
            jobs.kept.pop(sequence, None)

    def step(self) -> None:
        """Let one random thing happen."""
        stream = self.random.choice(list(self.streams.values()))
        happenings = [self.publish_next, self.record, self.acknowledge, stream.deliver, stream.deliver]
        if self.time_passes:
            happenings.append(self._pass_time)
        if self.replicated:
            happenings.append(stream.apply)
        if self.outages:
            happenings += [self._toggle_postgres, self._toggle_store, self._restart_nats]
        self.random.choice(happenings)()

    def _pass_time(self) -> None:
        self.seconds += self.random.choice([0.2, 0.6, 1.1, 3.0])

    def _toggle_postgres(self) -> None:
        self.acknowledge()
        self.postgres_up = not self.postgres_up

    def _toggle_store(self) -> None:
        self.store_up = not self.store_up

    def _restart_nats(self) -> None:
        """Restart NATS, which loses the ticks, because they are in memory."""
        self.streams[subjects.PROGRESS] = _Stream()

    async def _meanwhile(self) -> None:
        for _ in range(self.random.choice([0, 0, 1, 3, 8])):
            self.step()
        await asyncio.sleep(0)

    # As the gateway's broker ------------------------------------------------------------------------------------

    async def last_message(self, stream: str, subject_filter: str, timeout: float = 2.0) -> Stored | None:
        await self._meanwhile()
        source = self.streams[stream]
        kept = {
            sequence: event
            for sequence, event in source.kept.items()
            if not self.replicated or sequence <= source.applied
        }
        if stream == subjects.PROGRESS:
            stage = subject_filter.split(".")[2]
            kept = {sequence: event for sequence, event in kept.items() if event.stage == stage}
        newest = None
        if kept:
            sequence = max(kept)
            event = kept[sequence]
            if isinstance(event, Progress):
                subject = subjects.progress_subject(event.stage, event.job_id)
            else:
                assert not isinstance(event, AttemptFailed)
                subject = subjects.job_subject(messages.token(event), event.job_id)
            newest = Stored(subject, sequence, messages.encode(event), {})
        await self._meanwhile()
        return newest

    async def api(self, call: str, body: Any = None, timeout: float = 3.0) -> dict[str, Any]:
        await self._meanwhile()
        stream = call.split(".")[2]
        answer = self.streams[stream].info()
        await self._meanwhile()
        return answer

    async def last_sequence(self, stream: str) -> int:
        await self._meanwhile()
        applied = self.streams[stream].applied
        await self._meanwhile()
        return applied

    # As the gateway's database ----------------------------------------------------------------------------------

    async def job(self, job_id: str, tenant: str, include: Collection[str] = ()) -> Snapshot | None:
        await self._meanwhile()
        if not self.postgres_up:
            raise DatabaseUnavailable("the world says so")
        row = self.row if self.row is not None and self.row.tenant == tenant else None
        await self._meanwhile()
        return row


class BrokenBroker:
    """A broker that is down."""

    replicated = False

    async def last_message(self, *_: Any, **__: Any) -> Stored | None:
        raise BrokerUnavailable("not connected to NATS")

    async def api(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise BrokerUnavailable("not connected to NATS")
