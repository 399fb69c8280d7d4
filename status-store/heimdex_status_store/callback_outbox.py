"""Publishes due callbacks: after a job's terminal event is committed, and before that event is acknowledged.

If the store is killed in between, the terminal event is redelivered and the callback is published again. A JetStream
that loses its disk loses the due callbacks, too. They are published again from the rows in Postgres; the history of a
job shows whether its callback was delivered or given up.
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

#: Time-out of one attempt to publish, and the delays before the next attempts.
_TIMEOUT_SECONDS: Final = 2.0
_RETRY_DELAYS: Final = (0.1, 0.5)
#: Delay after which the terminal event is redelivered, if all of these attempts failed.
AGAIN_SECONDS: Final = 5.0
#: Rows read at a time when all callbacks are restored.
PAGE: Final = 500
_READ_SECONDS: Final = 300.0


def needs_callback(event: AnyMessage | callbacks.CallbackResult) -> TypeGuard[End]:
    """Whether this is the terminal event of a job with a `callback_url`."""
    return isinstance(event, (Completed, Failed, Canceled)) and event.callback_url is not None


class CallbackOutbox:
    """Publishes due callbacks on `heimdex.callbacks.due.*` for one status store."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self._broker = broker
        self._log = log

    async def publish(self, end: End, attempts: int = 0, restored: str = "") -> bool:
        """Publish the due callback of a terminal event. Returns whether it is stored.

        attempts: the number of attempts to call back that were already made.
        restored: empty, or the `cause` of `restore`; it makes the message ID differ from the one that NATS remembers,
        so that NATS stores the message again.
        """
        due = CallbackDue(end=callbacks.reported(end), tries=attempts, at=max(messages.now(), end.at))
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
            message="a due callback could not be stored; its terminal event will be redelivered",
            job_id=end.job_id,
            reason=reason,
        )
        return False

    async def _is_under_way(self, job_id: str) -> bool:
        """Whether the job's callback is in the stream, or will be published for its unacknowledged terminal event."""
        if await self._broker.last_message(subjects.CALLBACKS, subjects.callback_subject("*", job_id)) is not None:
            return True
        last = await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id))
        return last is not None and last.subject.split(".")[2] in subjects.ENDS

    async def restore(self, database: Database, cause: str) -> int:
        """Publish the callbacks again that are due according to the rows and missing in the stream.

        Returns how many could not be published. Called when the stream or its consumer was created anew; `cause`
        identifies the new one. Raises OUTAGE, BrokerUnavailable or JetStreamError.
        """
        after: str | None = None
        restored = missed = 0
        while True:

            async def read(connection: asyncpg.Connection, after: str | None = after) -> list[tuple[str, str, int]]:
                return await queries.callbacks_due(connection, after, PAGE)

            page = await database.run(read, _READ_SECONDS)
            for job_id, text, attempts in page:
                try:
                    end = messages.decode_stored(text.encode())
                except UnusableMessage as error:
                    self._log.error("callback_not_restorable", job_id=job_id, reason=str(error))
                    continue
                if needs_callback(end) and not await self._is_under_way(job_id):
                    stored = await self.publish(end, attempts, cause)
                    restored, missed = restored + stored, missed + (not stored)
            if len(page) < PAGE:
                break
            after = page[-1][0]
        if restored:
            self._log.warning("callbacks_restored", message="published lost callbacks again", count=restored)
        return missed
