"""Reads a job's history, and follows it live."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Final

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.history import CALLBACK_KINDS, EventRow, event_row
from heimdex_contracts.lifecycle import TERMINAL
from heimdex_contracts.messages import Progress
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable
from heimdex_gateway.jobs.status import NATS_DOWN, StateUnavailable
from heimdex_gateway.jobs.subscriptions import Interrupted, Subscription, Subscriptions

#: None is yielded after this time without an event, so that no proxy closes the stream as idle.
KEEP_ALIVE_SECONDS: Final = 15.0
#: How long to wait for missing entries of the history before it is returned without them.
CATCH_UP_SECONDS: Final = 2.0
NO_POSTGRES: Final = "Postgres cannot be reached, and the history is read from it. Try again."

#: The sort key of an entry in the history: step and attempt.
Key = tuple[int, int]
#: Yields an entry, a progress tick, or None after KEEP_ALIVE_SECONDS without either.
Live = AsyncIterator[EventRow | Progress | None]


def parse_id(text: str | None) -> Key | None:
    """Parse an event id to its key. Returns None if it is invalid: the stream then starts at the beginning."""
    step, dot, attempt = (text or "").partition(".")
    if (
        dot
        and step.isascii()
        and step.isdigit()
        and attempt.isascii()
        and attempt.isdigit()
        and len(step) < 10 > len(attempt)
    ):
        return int(step), int(attempt)
    return None


class History:
    """The use case that reads or follows a job's history. catch_up_seconds: as CATCH_UP_SECONDS."""

    def __init__(
        self,
        broker: Broker,
        database: Database,
        subscriptions: Subscriptions,
        catch_up_seconds: float = CATCH_UP_SECONDS,
    ) -> None:
        self._broker = broker
        self._database = database
        self._subscriptions = subscriptions
        self._catch_up_seconds = catch_up_seconds

    async def entries(self, job_id: str) -> list[EventRow]:
        """Return every entry in order, including those in the streams that Postgres does not have yet.

        Raises StateUnavailable if NATS cannot be reached, or if Postgres cannot and the streams hold only a part.
        """
        until = asyncio.get_running_loop().time() + self._catch_up_seconds
        entries: dict[Key, EventRow] = {}
        async for _ in repeat(0.01, 0.2, until=until):
            # The streams are read first: an event leaves them only after Postgres has recorded it.
            try:
                in_streams = await self._in_streams(job_id)
            except (BrokerUnavailable, JetStreamError):
                raise StateUnavailable(NATS_DOWN) from None
            # Of two results of one attempt the first counts, as in Postgres: a worker that counted as lost may report.
            entries = {(row.step, row.attempt): row for row in reversed(in_streams)}
            try:
                entries |= {(row.step, row.attempt): row for row in await self._database.history(job_id)}
            except DatabaseUnavailable:
                if not _is_whole(entries):
                    raise StateUnavailable(NO_POSTGRES) from None
            if _is_whole(entries):
                break
        # If entries are still missing, they were lost with an earlier database.
        return [entries[key] for key in sorted(entries)]

    @contextlib.asynccontextmanager
    async def live(self, job_id: str, after: Key | None) -> AsyncIterator[Live]:
        """Open an iterator over the history, and then over each event as it is stored, up to the job's terminal event.

        On entry, the events of the job are subscribed to and its history is read; raises StateUnavailable if this is
        not possible. after: the key of the last entry that the client has. If an event was missed, the iterator ends
        early, and the client must reconnect.
        """
        try:
            async with self._subscriptions.open(job_id, ticks=True) as subscription:
                yield _follow(subscription, await self.entries(job_id), after)
        except BrokerUnavailable:
            raise StateUnavailable(NATS_DOWN) from None

    async def _in_streams(self, job_id: str) -> list[EventRow]:
        """Read the job's entries from the streams, which hold all that are not recorded yet.

        Raises BrokerUnavailable, JetStreamError.
        """
        rows: list[EventRow] = []
        for stream, subject, decode in (
            (subjects.JOBS, subjects.job_filter(job_id), messages.decode_job),
            (subjects.ATTEMPTS, subjects.attempt_subject("*", job_id), messages.decode_attempt),
        ):
            sequence = 1
            while stored := await self._broker.next_message(stream, subject, sequence):
                sequence = stored.sequence + 1
                with contextlib.suppress(UnusableMessage):
                    rows.append(event_row(decode(stored.subject, stored.data)))
        return rows


def _is_whole(keys: Collection[Key]) -> bool:
    """Whether there are steps, and none is missing before the last one."""
    steps = sorted(step for step, attempt in keys if attempt == 0)
    return bool(steps) and steps == list(range(steps[-1] + 1))


async def _follow(subscription: Subscription, past: list[EventRow], after: Key | None) -> Live:
    last = after or (-1, -1)
    ended = False
    if last not in {(row.step, row.attempt) for row in past}:
        last = (-1, -1)  # an id of another job, or of a history that was lost: start at the beginning
    for row in past:
        if row.kind in CALLBACK_KINDS:
            continue  # callbacks are not part of the live stream, which ends with the terminal event
        key = (row.step, row.attempt)
        ended = row.kind in TERMINAL
        if key > last:
            last = key
            yield row
    try:
        while not ended:
            event = await subscription.next(KEEP_ALIVE_SECONDS)
            if event is None:
                yield None
            elif isinstance(event, Progress):
                if event.step >= last[0] and not event.ended:
                    yield event
            else:
                row = event_row(event)
                key = (row.step, row.attempt)
                if row.step > last[0] + 1:
                    return  # an event in between was missed; the history has it
                if key > last:
                    last = key
                    ended = row.kind in TERMINAL
                    yield row
    except Interrupted:
        return
