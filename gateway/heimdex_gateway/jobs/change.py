"""What a cancel and a retry share: the job and its newest message, the successor, and the wait until a GET shows it."""

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from heimdex_contracts import lifecycle, messages, tracing
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Follows, JobMessage
from heimdex_contracts.runtime.backoff import attempts
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_gateway.jobs.repository import Database
from heimdex_gateway.jobs.status import StatusReader

#: How long an answer waits for the status store to record the change.
RECORDED_WITHIN_SECONDS: Final = 2.0
PUBLISH_SECONDS: Final = 2.0
#: All of it together: less than a route allows, so that a change that is stored is never answered with 500.
ANSWERED_WITHIN_SECONDS: Final = 4.0
#: Between two looks at a stream whose leader does not know yet what Postgres does.
BEHIND_SECONDS: Final = 0.05
#: A job that moves on between our look and our publish is looked at again; it has few stages to move through.
LOOKS: Final = 20


class Conflict(HeimdexError):
    """The job's state does not allow the change; the text says why."""


class Changed(msgspec.Struct, frozen=True):
    """The job after the change, whether Postgres has it already, and whether Postgres could be asked at all."""

    job: Snapshot
    recorded: bool
    asked: bool = True


class JobChanges:
    """Publishes the successor of a job's newest message, and waits for its record."""

    def __init__(self, broker: Broker, publisher: Publisher, database: Database, status: StatusReader) -> None:
        self.broker = broker
        self.database = database
        self.status = status
        self._publisher = publisher

    async def publish(self, message: AnyJobMessage, expected: int) -> None:
        """As the successor of stream sequence `expected`. Raises as Publisher.publish."""
        await self._publisher.publish(message, expected, asyncio.get_running_loop().time() + PUBLISH_SECONDS)

    async def is_recorded(self, message: AnyJobMessage) -> bool:
        """Whether a publish that was refused had been stored by an earlier one, unheard, and has left the stream."""
        with contextlib.suppress(HeimdexError):
            return await self.database.last_message(message.job_id) == message
        return False

    async def wait_until_visible(self, message: AnyJobMessage, answer_by: float) -> Changed:
        """Wait until a plain GET shows the change, but for no longer than an answer may take."""
        after = lifecycle.snapshot(message)
        asked = False
        deadline = min(answer_by, asyncio.get_running_loop().time() + RECORDED_WITHIN_SECONDS)
        async for _ in attempts(0.005, 0.1, until=deadline):
            with contextlib.suppress(HeimdexError):
                row = await self.database.job(message.job_id, message.tenant)
                asked = True
                if row is not None and row.rank >= after.rank:
                    return Changed(row, True)
        return Changed(after, False, asked)


def answer_by() -> float:
    """Event-loop time by which a change must be answered."""
    return asyncio.get_running_loop().time() + ANSWERED_WITHIN_SECONDS


def succeed(last: AnyJobMessage, sequence: int | None, job: Snapshot, traceparent: str | None) -> dict[str, Any]:
    """What the successor of `last` has in any case. sequence: that of `last`, if the stream still has it."""
    return spec_of(last, JobMessage) | {
        "step": last.step + 1,
        "at": max(messages.now(), last.at, job.updated_at),
        "follows": Follows(sequence) if sequence is not None else None,
        "trace": tracing.start(traceparent) if traceparent else tracing.child(last.trace),
    }
