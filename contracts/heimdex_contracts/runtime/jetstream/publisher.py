"""Publishing a job's next message: one successor, and an outcome that is known in the end.

Every message on `heimdex.jobs.*.<job_id>` names the stream sequence of the message that it follows, and the broker
accepts one successor only. That is the fence against twins, thawed workers and late hand-overs.

In a replicated stream, a consumer's leader delivers what its own node has applied, and the stream's leader may apply
the same message later. So "the leader does not have it" proves nothing until the leader's last sequence has passed the
message in question: `Publisher.newest` asks for both.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, LeaderBehind, Superseded, UnusableMessage
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due
from heimdex_contracts.runtime.jetstream.connection import (
    BEING_STORED,
    DUPLICATE_IN_BATCH,
    WRONG_LAST_SEQUENCE,
    ApiError,
    Broker,
    JetStreamError,
    PubAck,
    Stored,
)
from heimdex_contracts.runtime.logs import Logger

#: JetStream has no room, or its limits forbid the message: repeated by whoever holds the job, refused by the gateway.
_RETRY_DELAYS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

#: Why the first message of a further run is due (`messages.Reason`).
RETRIED: Final = "retried"
#: Why a job whose messages were lost is due.
RESTORED: Final = "restored"

#: How many tries an unusable message in the way is left to its consumers before it is removed.
_PATIENCE: Final = 5
#: How long a leader may stay behind what its stream has delivered. Longer than an election (4 to 9 s) and than any lag
#: between storing and applying; a leader that has lost messages stays behind for ever.
BEHIND_SECONDS: Final = 15.0


class Refused(HeimdexError):
    """JetStream refused the message for a reason of its own (no space, limits); nothing was stored."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A message ready to publish."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def envelope(message: AnyJobMessage, expected: int) -> Envelope:
    """As the successor of stream sequence `expected` (0: the job's first).

    `Nats-Msg-Id` is the same for every repetition of one hand-over; twins differ by what they hand over, but for those
    that begin the same run. What is restored is not taken for the message that was lost. A job whose time has not come
    is a message schedule: the server publishes it to its first stage then, without our headers.
    """
    token = messages.token(message)
    headers = {
        "Nats-Msg-Id": f"{message.job_id}.{message.step}.{_what(message) or token}",
        "Nats-Expected-Last-Subject-Sequence": str(expected),
        "Nats-Expected-Last-Subject-Sequence-Subject": subjects.job_filter(message.job_id),
    }
    if isinstance(message, Due) and message.not_before and message.not_before > messages.now():
        headers["Nats-Schedule"] = f"@at {message.not_before.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')}"
        headers["Nats-Schedule-Target"] = subjects.job_subject(token, message.job_id)
        token = subjects.LATER
    if message.trace:
        headers["traceparent"] = message.trace
    return Envelope(subjects.job_subject(token, message.job_id), messages.encode(message), headers)


def _what(message: AnyJobMessage) -> str | None:
    return message.reason if isinstance(message, Due) and message.reason in {RETRIED, RESTORED} else None


def _begins_a_run(message: AnyJobMessage) -> bool:
    return isinstance(message, Due) and message.reason == RETRIED


class Publisher:
    """Publishes on HEIMDEX_JOBS for one process.

    problem: what is wrong with the streams (`Topology.problem`). While there is something, nothing is published: a
    message that no consumer is there for is acknowledged, and dropped.
    """

    def __init__(self, broker: Broker, log: Logger, problem: Callable[[], str | None] = lambda: None) -> None:
        self._broker = broker
        self._log = log
        self._problem = problem

    async def publish(self, message: AnyJobMessage, expected: int, deadline: float | None = None) -> int:
        """Publish as the successor of stream sequence `expected` (0: the job's first); returns the new sequence.

        deadline: event-loop time after which it gives up with BrokerUnavailable; None: never. A publish without an
        answer is repeated; a repeat that is refused because the first one was stored counts as stored.
        Raises Superseded when the job has another successor, Refused when JetStream has no room for it or its streams
        are not as they must be, LeaderBehind when the stream's leader does not know `expected` within BEHIND_SECONDS.
        """
        self._refuse_where_broken()
        ready = envelope(message, expected)
        loop = asyncio.get_running_loop()
        attempt = 0
        behind_until: float | None = None
        while True:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise BrokerUnavailable("NATS did not store the message in time; whether it did later is not known")
            try:
                ack = await self._broker.publish(
                    ready.subject, ready.payload, ready.headers, timeout=min(2.0, left or 2.0)
                )
                if ack.error is None:
                    if ack.duplicate and not attempt and _begins_a_run(message):
                        # Stored by another, whose run may have gone to its end and out of the stream since our look.
                        raise Superseded("the job was run again by another request")
                    return ack.seq
                if ack.error.err_code == BEING_STORED:
                    raise BrokerUnavailable("the message is being replicated")
                if ack.error.err_code not in WRONG_LAST_SEQUENCE:
                    raise Refused(f"JetStream refused the message: {ack.error.description}.")
                stored = await self._look(message, ready, expected, attempt)
                if stored is not None:
                    return stored
            except (BrokerUnavailable, JetStreamError) as error:
                if isinstance(error, LeaderBehind):
                    behind_until = behind_until or loop.time() + BEHIND_SECONDS
                    if loop.time() > behind_until:
                        raise
                self._log.debug(
                    "publish_repeated",
                    message="a publish has no known outcome yet: repeating it",
                    subject=ready.subject,
                    error=str(error),
                )
            delay = _RETRY_DELAYS[min(attempt, len(_RETRY_DELAYS) - 1)]
            attempt += 1
            await asyncio.sleep(delay if left is None else max(0.0, min(delay, left)))

    async def publish_new(self, jobs: Sequence[Due], deadline: float) -> None:
        """Publish new jobs, all or none, in one atomic batch (nats-server >= 2.12, at most 1,000). `deadline` as above.

        Raises as `publish`. Repeating a batch is safe: its jobs are new, so a repeat is refused where the first was
        stored.
        """
        self._refuse_where_broken()
        loop = asyncio.get_running_loop()
        ready = [envelope(job, expected=0) for job in jobs]
        attempt = 0
        while deadline > loop.time():
            try:
                error = await self._publish_batch(ready, deadline)
                if error is None:
                    return
                if error.err_code not in WRONG_LAST_SEQUENCE | {DUPLICATE_IN_BATCH}:
                    raise Refused(f"JetStream refused the jobs: {error.description}.")
                last = await self.last(jobs[-1].job_id)
                if last is not None:
                    return  # an earlier try of this batch was stored
            except (BrokerUnavailable, JetStreamError) as error_:
                self._log.debug("publish_repeated", batch=len(jobs), error=str(error_))
            await asyncio.sleep(_RETRY_DELAYS[min(attempt, len(_RETRY_DELAYS) - 1)])
            attempt += 1
        raise BrokerUnavailable("NATS did not store the jobs in time; whether it did later is not known")

    def _refuse_where_broken(self) -> None:
        if (problem := self._problem()) is not None:
            raise Refused(problem)

    async def _publish_batch(self, ready: list[Envelope], deadline: float) -> ApiError | None:
        """One try. The server answers the first message, so that a batch it refuses ends early, and the commit.

        A commit is waited for longer than a single message: a server that is still busy with the batch would only have
        more to do if all of it were sent again.
        """

        def left(most: float, kept: float = 0.0) -> float:
            return max(0.1, min(most, deadline - asyncio.get_running_loop().time() - kept))

        batch_id = secrets.token_hex(16)
        for entry in ready:  # nothing is sent of a batch that cannot be sent whole
            headers = {
                **entry.headers,
                "Nats-Batch-Id": batch_id,
                "Nats-Batch-Sequence": "1000",
                "Nats-Batch-Commit": "1",
            }
            if (error := await self._broker.too_large(entry.payload, headers)) is not None:
                return error
        for number, entry in enumerate(ready, start=1):
            headers = {**entry.headers, "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            if number == len(ready):
                headers["Nats-Batch-Commit"] = "1"
                return (await self._broker.publish(entry.subject, entry.payload, headers, left(10.0, 1.0))).error
            if number == 1:
                answer = await self._broker.request(entry.subject, entry.payload, left(2.0), headers)
                if answer.data:  # an answer without a body: go on
                    return msgspec.json.decode(answer.data, type=PubAck).error
            else:
                self._broker.send(entry.subject, entry.payload, headers=headers, linger=0)
        return None

    async def last(self, job_id: str) -> Stored | None:
        """The job's newest message, as far as the stream's leader knows. Raises BrokerUnavailable or JetStreamError.

        What a publisher was acknowledged for is there, or was removed since. What a consumer delivered may not be there
        yet: `newest`.
        """
        return await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id))

    async def newest(self, job_id: str, known: int) -> Stored | None:
        """The job's newest message, from a leader that knows stream sequence `known`, which a consumer delivered.

        Raises LeaderBehind when the leader does not know it yet, BrokerUnavailable or JetStreamError.
        """
        last = await self.last(job_id)
        if last is not None and last.sequence >= known:
            return last
        applied = await self._broker.last_sequence(subjects.JOBS)
        if applied < known:
            raise LeaderBehind(f"the stream's leader is at sequence {applied}, before {known}, which was delivered")
        return await self.last(job_id)  # once more: it may have applied the message between the two answers

    async def _look(self, message: AnyJobMessage, ready: Envelope, expected: int, attempt: int) -> int | None:
        """After a refusal: our own sequence if we had been stored, None to try again.

        Raises Superseded, LeaderBehind, or as `last`.
        """
        last = await self.newest(message.job_id, expected)
        if last is None:
            if not expected:
                # A message of this job is being stored, or was there and is gone: the next try is told which.
                return None
            raise Superseded("the job's messages are gone: it was finished and recorded")
        if last.data == ready.payload:
            return last.sequence
        if last.sequence == expected:
            return None
        if last.sequence < expected:
            # Ours is gone, and only what came after one's own message can be a stray: of two copies the first one wins.
            raise Superseded("another copy of the message that we hold took its place")
        try:
            found = messages.decode_job(last.subject, last.data)
        except UnusableMessage as error:
            if attempt < _PATIENCE:  # whoever consumes it sets it aside, which removes it
                return None
            await self._remove_stray(last, f"it is unusable ({error})")
            return None
        if isinstance(message, Canceled) and isinstance(found, Due) and found.not_before is not None:
            # Its time came between our look and our publish: the server's own copy of what we followed is the job.
            raise Superseded("the time of the job has come")
        if expected and found.step < message.step:
            await self._remove_stray(last, "it is a copy of an older message")
            return None
        raise Superseded(f"the job already went on to step {found.step} at {messages.token(found)}")

    async def _remove_stray(self, last: Stored, why: str) -> None:
        """A stranger's message must not hold up a job: its consumers set it aside, we take it out of the way."""
        self._log.error(
            "stray_removed",
            message="removed a message that blocked its job",
            subject=last.subject,
            sequence=last.sequence,
            reason=why,
        )
        await self._broker.delete(subjects.JOBS, last.sequence)
