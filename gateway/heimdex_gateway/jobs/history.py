"""A job's history: as far as it goes now, and followed live."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Final

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.history import CALLBACK_KINDS, EventRow, event_row
from heimdex_contracts.lifecycle import TERMINAL
from heimdex_contracts.messages import Progress
from heimdex_contracts.runtime.backoff import attempts
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable
from heimdex_gateway.jobs.status import NATS_DOWN, StateUnavailable
from heimdex_gateway.jobs.subscriptions import Interrupted, Subscription, Subscriptions

#: Something is yielded after this much silence, so that no proxy takes the stream for dead.
KEEP_ALIVE_SECONDS: Final = 15.0
#: How long a gap in the history may take to close before the history is returned with it.
CATCH_UP_SECONDS: Final = 2.0
NO_POSTGRES: Final = "Postgres cannot be reached, and the history is read from it. Try again."

#: An entry's place in the history: step and attempt.
Key = tuple[int, int]
#: An entry, a tick of progress, or None after KEEP_ALIVE_SECONDS without either.
Live = AsyncIterator[EventRow | Progress | None]


def parse_id(text: str | None) -> Key | None:
    """An event's id as a place in the history; None for what is not an id of ours (the stream then starts anew)."""
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
    """The use case."""

    def __init__(self, broker: Broker, database: Database, subscriptions: Subscriptions) -> None:
        self._broker = broker
        self._database = database
        self._subscriptions = subscriptions

    async def entries(self, job_id: str) -> list[EventRow]:
        """Every entry, in order, also those that the streams hold and Postgres does not have yet.

        Raises StateUnavailable.
        """
        until = asyncio.get_running_loop().time() + CATCH_UP_SECONDS
        entries: dict[Key, EventRow] = {}
        async for _ in attempts(0.01, 0.2, until=until):
            # The streams first: an event leaves them only once Postgres has it.
            try:
                entries = {(row.step, row.attempt): row for row in await self._in_streams(job_id)}
            except (BrokerUnavailable, JetStreamError):
                raise StateUnavailable(NATS_DOWN) from None
            try:
                entries |= {(row.step, row.attempt): row for row in await self._database.history(job_id)}
            except DatabaseUnavailable:
                if not _is_whole(entries):
                    raise StateUnavailable(NO_POSTGRES) from None
            if _is_whole(entries):
                break
        # A gap that stays is a history that was lost with its database.
        return [entries[key] for key in sorted(entries)]

    @contextlib.asynccontextmanager
    async def live(self, job_id: str, after: Key | None) -> AsyncIterator[Live]:
        """The history, then each change as it is stored, up to the event that ends the job.

        When it begins, the job is subscribed to and its history was read. Raises StateUnavailable where it cannot
        begin. after: the place of the last entry that the caller has. Ends early, for the caller to come again, when
        an event was missed.
        """
        try:
            async with self._subscriptions.open(job_id, ticks=True) as subscription:
                yield _follow(subscription, await self.entries(job_id), after)
        except BrokerUnavailable:
            raise StateUnavailable(NATS_DOWN) from None

    async def _in_streams(self, job_id: str) -> list[EventRow]:
        """What the streams hold of this job: all that is not recorded yet. Raises BrokerUnavailable, JetStreamError."""
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
    """Whether no step is missing before the last one that is there."""
    steps = sorted(step for step, attempt in keys if attempt == 0)
    return bool(steps) and steps == list(range(steps[-1] + 1))


async def _follow(subscription: Subscription, past: list[EventRow], after: Key | None) -> Live:
    last = after or (-1, -1)
    ended = False
    if last not in {(row.step, row.attempt) for row in past}:
        last = (-1, -1)  # an id of another job, or of a history that was lost: begin anew
    for row in past:
        if row.kind in CALLBACK_KINDS:
            continue  # the stream is about the job, and ends with its terminal event
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
                    return  # an event between them was missed, and the history has it
                if key > last:
                    last = key
                    ended = row.kind in TERMINAL
                    yield row
    except Interrupted:
        return
