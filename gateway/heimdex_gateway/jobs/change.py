"""Functions shared by cancel and retry: they build and publish a successor, and wait until a GET shows it."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any, Final

import msgspec

from heimdex_contracts import lifecycle, messages, patches, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Follows, JobMessage
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import CONSUMER_NOT_FOUND, Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable, KeptMessage
from heimdex_gateway.jobs.status import BOTH_NEEDED, NATS_DOWN, Newest, StateUnavailable, StatusReader

#: How long a response waits until the status store has recorded the change.
RECORDED_WITHIN_SECONDS: Final = 2.0
PUBLISH_SECONDS: Final = 2.0
#: The time limit of the whole change. It is shorter than a route's, so that a stored change never returns a 500.
ANSWERED_WITHIN_SECONDS: Final = 4.0
#: The delay between two reads of a stream whose leader does not have a message yet that Postgres has.
BEHIND_SECONDS: Final = 0.05
#: The maximum number of reads of a job that changes between our read and our publish. A job has few stages, so it
#: changes only a few times.
MAX_READS: Final = 20


class Conflict(HeimdexError):
    """The job does not allow the change. The text gives the reason. field: what of the job is the reason, if known."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class Changed(msgspec.Struct, frozen=True):
    """A job after a change.

    recorded: Postgres has the change. queried: Postgres answered a query after the change.
    """

    job: Snapshot
    recorded: bool
    queried: bool = True


class JobChanges:
    """Publishes the successor of a job's newest message, and waits until it is recorded.

    answered_within_seconds: as ANSWERED_WITHIN_SECONDS.
    """

    def __init__(
        self,
        broker: Broker,
        publisher: Publisher,
        database: Database,
        status: StatusReader,
        answered_within_seconds: float = ANSWERED_WITHIN_SECONDS,
    ) -> None:
        self.broker = broker
        self.database = database
        self.status = status
        self._publisher = publisher
        self._answered_within_seconds = answered_within_seconds

    def answer_by(self) -> float:
        """Return the event-loop time by which the response to a change that starts now must be sent."""
        return asyncio.get_running_loop().time() + self._answered_within_seconds

    async def publish(self, message: AnyJobMessage, expected: int, last: Newest | KeptMessage) -> None:
        """Publish a message as the successor of stream sequence `expected`. Raises as Publisher.publish.

        last: the message that it was built from. The fields of it that only a newer release knows are kept.
        """
        payload = patches.patched(message, last.message, last.payload)
        deadline = asyncio.get_running_loop().time() + PUBLISH_SECONDS
        await self._publisher.publish(message, expected, deadline, payload)

    async def lost_message(self, job: Snapshot) -> KeptMessage | None:
        """Return the newest message of an unfinished job as its row keeps it, if it is certainly gone from the stream.

        A successor of it is then published with the expected sequence 0: it competes with the reconciler, which
        restores the job, and the broker accepts one of the two. A worker that still runs the job is superseded.
        Returns None if the message may be in the stream, or if the job changes meanwhile. The order of the reads
        matters: the leader has applied whatever the row contains before the stream is read, and what a worker published
        before that and what has left the stream since is in the row that is read last.

        Raises StateUnavailable if NATS or Postgres is down.
        """
        try:
            last = await self.database.last_message(job.job_id)
            if last is None or last.message.step != job.step or not await self.status.leader_knows_recorded():
                return None
            if await self.broker.last_message(subjects.JOBS, subjects.job_filter(job.job_id), timeout=1.0) is not None:
                return None
            row = await self.database.job(job.job_id, job.tenant)
        except DatabaseUnavailable:
            raise StateUnavailable(BOTH_NEEDED) from None
        except (BrokerUnavailable, JetStreamError):
            raise StateUnavailable(NATS_DOWN) from None
        return last if row is not None and row.step == job.step and not row.ended else None

    async def check_queue(self, stage: str) -> None:
        """Raise Conflict if the stage has no queue, so that a message at it would be recorded and never run.

        This is about stages that this gateway does not know. Another process declares them, or did. Raises
        BrokerUnavailable or StateUnavailable.
        """
        try:
            await self.broker.api(f"CONSUMER.INFO.{subjects.JOBS}.{stage}", timeout=1.0)
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise StateUnavailable(NATS_DOWN) from None
            raise Conflict(
                f"No worker declares the stage {stage!r} of this job any more: deploy it again, or retry the job from "
                "the start (from=start)."
            ) from None

    async def is_recorded(self, message: AnyJobMessage) -> bool:
        """Whether a refused message is already recorded.

        This happens if an earlier, unconfirmed publish of it was stored, and the message has since left the stream.
        """
        with contextlib.suppress(HeimdexError):
            last = await self.database.last_message(message.job_id)
            return last is not None and last.message == message
        return False

    async def wait_until_visible(
        self, message: AnyJobMessage, answer_by: float, include: Collection[str] = ()
    ) -> Changed:
        """Wait until a plain GET shows the change, for RECORDED_WITHIN_SECONDS and until `answer_by` at most.

        include: as in Database.job.
        """
        after = lifecycle.snapshot(message)
        queried = False
        deadline = min(answer_by, asyncio.get_running_loop().time() + RECORDED_WITHIN_SECONDS)
        async for _ in repeat(0.005, 0.1, until=deadline):
            with contextlib.suppress(HeimdexError):
                row = await self.database.job(message.job_id, message.tenant, include)
                queried = True
                if row is not None and row.rank >= after.rank:
                    return Changed(row, True)
        return Changed(after, False, queried)


def succeed(last: AnyJobMessage, sequence: int | None, job: Snapshot, traceparent: str | None) -> dict[str, Any]:
    """Build the fields that every successor of `last` has. sequence: that of `last`, None if it has left the stream."""
    return spec_of(last, JobMessage) | {
        "step": last.step + 1,
        "at": max(messages.now(), last.at, job.updated_at),
        "follows": Follows(sequence) if sequence is not None else None,
        "trace": tracing.start(traceparent) if traceparent else tracing.child(last.trace),
    }
