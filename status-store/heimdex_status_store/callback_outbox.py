"""What is owed to a job's `callback_url` at its end: published after that is committed, before it is acknowledged.

Killed in between, the end comes again, and is published again. A JetStream that lost its disk has lost what was owed,
too: that is published again from the rows, whose history says which callbacks have had their last word.
"""

import asyncio
from typing import Final, TypeGuard

import asyncpg

from heimdex_contracts import callbacks, messages, subjects, tracing
from heimdex_contracts.callbacks import CallbackDue
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.messages import AnyMessage, Canceled, Completed, End, Failed
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store import queries
from heimdex_status_store.database import Database

#: Of one try to publish, and of those that follow at once; then the end is put back, to come again after a while.
_TIMEOUT_SECONDS: Final = 2.0
_RETRY_DELAYS: Final = (0.1, 0.5)
AGAIN_SECONDS: Final = 5.0
#: Rows read at a time when everything is looked through.
PAGE: Final = 500
_READ_SECONDS: Final = 300.0


def needs_callback(event: AnyMessage | callbacks.CallbackResult) -> TypeGuard[End]:
    """Whether this event ends a job that somebody wants to hear of."""
    return isinstance(event, (Completed, Failed, Canceled)) and event.callback_url is not None


class CallbackOutbox:
    """Publishes on `heimdex.callbacks.due.*` for one status store."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self._broker = broker
        self._log = log

    async def publish(self, end: End, tries: int = 0, restored: str = "") -> bool:
        """Whether it is stored. `tries`: how often it was tried already.

        restored: what took the first one away, to tell it from the one that NATS remembers by its id.
        """
        due = CallbackDue(end=end, tries=tries, at=max(messages.now(), end.at))
        message_id = f"{callbacks.message_id(due)}.{restored}" if restored else callbacks.message_id(due)
        headers = {"Nats-Msg-Id": message_id, "traceparent": tracing.child(end.trace)}
        subject = subjects.callback_subject(subjects.CALLBACK_DUE, end.job_id)
        reason = ""
        for delay in (*_RETRY_DELAYS, 0.0):
            try:
                ack = await self._broker.publish(subject, callbacks.encode(due), headers, _TIMEOUT_SECONDS)
                if ack.error is None:
                    return True
                reason = ack.error.description
            except BrokerUnavailable as error:
                reason = str(error)
            await asyncio.sleep(delay)
        self._log.warning(
            "callback_not_due_yet",
            message="a callback could not be stored; its end is kept, and tried again",
            job_id=end.job_id,
            reason=reason,
        )
        return False

    async def _is_under_way(self, job_id: str) -> bool:
        """Whether its callback is in the stream, or follows from the job's end, which is not acknowledged yet."""
        if await self._broker.last_message(subjects.CALLBACKS, subjects.callback_subject("*", job_id)) is not None:
            return True
        last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id))
        return last is not None and last.subject.split(".")[2] in subjects.ENDS

    async def restore(self, database: Database, cause: str) -> int:
        """Publish again what the rows say is owed and the stream does not hold; returns how many could not be.

        To be called when the stream, or its consumer, is another one than before; `cause` tells it from the one before.
        Raises OUTAGE, BrokerUnavailable or JetStreamError.
        """
        after: str | None = None
        restored = missed = 0
        while True:

            async def read(connection: asyncpg.Connection, after: str | None = after) -> list[tuple[str, str, int]]:
                return await queries.owed(connection, after, PAGE)

            page = await database.run(read, _READ_SECONDS)
            for job_id, text, tries in page:
                try:
                    end = messages.decode_stored(text.encode())
                except UnusableMessage as error:
                    self._log.error("callback_not_restorable", job_id=job_id, reason=str(error))
                    continue
                if isinstance(end, End) and not await self._is_under_way(job_id):
                    stored = await self.publish(end, tries, cause)
                    restored, missed = restored + stored, missed + (not stored)
            if len(page) < PAGE:
                break
            after = page[-1][0]
        if restored:
            self._log.warning("callbacks_restored", message="published callbacks again that were lost", count=restored)
        return missed
