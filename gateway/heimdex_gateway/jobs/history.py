"""A job's history, as one answer, and as a live stream: history first, then each change as it is stored."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.history import CALLBACK_KINDS, EventRow, event_row
from heimdex_contracts.job_object import moment
from heimdex_contracts.lifecycle import TERMINAL
from heimdex_contracts.messages import Progress
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_gateway.jobs.status import NATS_DOWN, StateUnavailable
from heimdex_gateway.jobs.subscriptions import Interrupted, Subscription
from heimdex_gateway.schemas.events import EventObject, event_object

#: A comment is sent after this much silence, so that no proxy takes the stream for dead.
KEEP_ALIVE_SECONDS: Final = 15.0
#: How long a gap in the history may take to close before it is told as it is.
CATCH_UP_SECONDS: Final = 2.0

Key = tuple[int, int]
_json: Final = msgspec.json.Encoder()


def parse_id(text: str | None) -> Key | None:
    """An event's id as a place in the history; None for what is none of ours (then the stream starts anew)."""
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


async def history(gateway: Gateway, job_id: str) -> list[EventRow]:
    """Every entry, in order, also those that the streams hold and Postgres does not have yet.

    Raises HeimdexError where it cannot be had.
    """
    deadline = asyncio.get_running_loop().time() + CATCH_UP_SECONDS
    delay = 0.01
    while True:
        # The streams first: an event leaves them only once Postgres has it.
        try:
            found = {(row.step, row.attempt): row for row in await _in_streams(gateway, job_id)}
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None
        try:
            found |= {(row.step, row.attempt): row for row in await gateway.database.history(job_id)}
        except DatabaseUnavailable:
            if not _is_whole(found):
                raise
        if _is_whole(found) or asyncio.get_running_loop().time() > deadline:
            # A gap that stays is a history that was lost with its database.
            return [found[key] for key in sorted(found)]
        await asyncio.sleep(delay)
        delay = min(0.2, delay * 2)


def _is_whole(found: Collection[Key]) -> bool:
    """Whether no step is missing before the last one that is there."""
    steps = sorted(step for step, attempt in found if attempt == 0)
    return bool(steps) and steps == list(range(steps[-1] + 1))


@contextlib.asynccontextmanager
async def live(gateway: Gateway, job_id: str, after: Key | None) -> AsyncIterator[AsyncIterator[bytes]]:
    """The stream, as server-sent events; ends with the event that ends the job.

    When it begins, the job is watched and its history was read. Raises HeimdexError where that cannot be had.
    after: the place of the last event that the caller has seen. Ends early, for the caller to come again, when
    something was missed.
    """
    try:
        async with gateway.subscriptions.open(job_id, ticks=True) as watch:
            yield _told(watch, await history(gateway, job_id), after)
    except BrokerUnavailable:
        raise StateUnavailable(NATS_DOWN) from None


async def _told(watch: Subscription, past: list[EventRow], after: Key | None) -> AsyncIterator[bytes]:
    sent = after or (-1, -1)
    yield b"retry: 1000\n\n"
    ended = False
    if sent not in {(row.step, row.attempt) for row in past}:
        sent = (-1, -1)  # an id of another job, or of a history that was lost: begin anew
    for row in past:
        if row.kind in CALLBACK_KINDS:
            continue  # the stream tells of the job, and ends with its end
        key = (row.step, row.attempt)
        ended = row.kind in TERMINAL
        if key > sent:
            sent = key
            yield _sse(event_object(row))
    try:
        while not ended:
            event = await watch.next(KEEP_ALIVE_SECONDS)
            if event is None:
                yield b": still here\n\n"
            elif isinstance(event, Progress):
                if event.step >= sent[0] and not event.ended:
                    yield _tick(event)
            else:
                row = event_row(event)
                key = (row.step, row.attempt)
                if row.step > sent[0] + 1:
                    return  # one between them was not heard, and the history has it
                if key > sent:
                    sent = key
                    ended = row.kind in TERMINAL
                    yield _sse(event_object(row))
    except Interrupted:
        return


async def _in_streams(gateway: Gateway, job_id: str) -> list[EventRow]:
    """What the streams hold of this job: all that is not recorded yet. Raises BrokerUnavailable or JetStreamError."""
    found: list[EventRow] = []
    for stream, subject, decode in (
        (subjects.JOBS, subjects.job_filter(job_id), messages.decode_job),
        (subjects.ATTEMPTS, subjects.attempt_subject("*", job_id), messages.decode_attempt),
    ):
        sequence = 1
        while stored := await gateway.broker.next_message(stream, subject, sequence):
            sequence = stored.sequence + 1
            with contextlib.suppress(UnusableMessage):
                found.append(event_row(decode(stored.subject, stored.data)))
    return found


def _sse(entry: EventObject) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (entry.id.encode(), entry.event.encode(), _json.encode(entry))


def _tick(tick: Progress) -> bytes:
    data = {"stage": tick.stage, "attempt": tick.attempt, "progress": tick.progress, "at": moment(tick.at)}
    return b"event: progress\ndata: %s\n\n" % _json.encode(data)
