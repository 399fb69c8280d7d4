"""Publishes a job's next message as the only successor of its predecessor, with an outcome that is eventually known.

Every message on `heimdex.jobs.*.<job_id>` names the stream sequence of its predecessor, and the broker accepts only one
successor. This successor fence rejects duplicate hand-overs, those of workers that were frozen, and late ones.

In a replicated stream, a consumer's leader delivers the messages that its own node has applied, and the stream's leader
may apply them later. That the leader does not have a message therefore proves nothing until the leader's last sequence
has reached that message. `Publisher.newest` requests both.
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

#: Delays between repeated publishes whose outcome is unknown; the last one applies to all further repetitions.
_RETRY_DELAYS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

#: The reason of the first message of a further run (`messages.Reason`).
RETRIED: Final = "retried"
#: The reason of a job whose messages were lost and that is published again.
RESTORED: Final = "restored"

#: The attempts for which an unusable message that blocks a job is left to its consumers, before it is removed.
_ATTEMPTS_BEFORE_REMOVAL: Final = 5
#: How long a leader may stay behind the messages that its stream has delivered. This is longer than an election (4 to
#: 9 s) and than any lag between storing and applying. A leader that has lost messages stays behind for ever.
BEHIND_SECONDS: Final = 15.0


class Refused(HeimdexError):
    """JetStream rejected the message (no space, a limit), or its streams are wrong; nothing was stored.

    A worker retries, because it holds the job; the gateway rejects the request.
    """


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """An encoded message with its subject and headers, ready to publish."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def envelope(message: AnyJobMessage, expected: int, payload: bytes | None = None) -> Envelope:
    """Encode a message as the successor of stream sequence `expected` (0: the job's first message).

    payload: the message's JSON if it has more fields than this release knows (`patches.patched`).

    `Nats-Msg-Id` is the same for every repetition of one hand-over, and for all messages that start the same run.
    Competing successors with different tokens have different ids. A restored message has an id of its own, so that
    JetStream does not deduplicate it against the lost one.

    A scheduled job is a message schedule: the server publishes it to its first stage at `not_before`, without our
    headers.
    """
    token = messages.token(message)
    headers = {
        "Nats-Msg-Id": f"{message.job_id}.{message.step}.{_id_suffix(message) or token}",
        "Nats-Expected-Last-Subject-Sequence": str(expected),
        "Nats-Expected-Last-Subject-Sequence-Subject": subjects.job_filter(message.job_id),
    }
    if isinstance(message, Due) and message.not_before and message.not_before > messages.now():
        headers["Nats-Schedule"] = f"@at {message.not_before.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')}"
        headers["Nats-Schedule-Target"] = subjects.job_subject(token, message.job_id)
        token = subjects.LATER
    if message.trace:
        headers["traceparent"] = message.trace
    return Envelope(subjects.job_subject(token, message.job_id), payload or messages.encode(message), headers)


def _id_suffix(message: AnyJobMessage) -> str | None:
    return message.reason if isinstance(message, Due) and message.reason in {RETRIED, RESTORED} else None


def _starts_further_run(message: AnyJobMessage) -> bool:
    return isinstance(message, Due) and message.reason == RETRIED


class Publisher:
    """Publishes on HEIMDEX_JOBS for one process.

    problem: returns what is wrong with the streams, or None (`Topology.problem`). Nothing is published while there is a
    problem, because JetStream acknowledges and drops a message for which no consumer exists. behind_seconds: as
    BEHIND_SECONDS.
    """

    def __init__(
        self,
        broker: Broker,
        log: Logger,
        problem: Callable[[], str | None] = lambda: None,
        behind_seconds: float = BEHIND_SECONDS,
    ) -> None:
        self._broker = broker
        self._log = log
        self._problem = problem
        self._behind_seconds = behind_seconds

    async def publish(
        self, message: AnyJobMessage, expected: int, deadline: float | None = None, payload: bytes | None = None
    ) -> int:
        """Publish as the successor of stream sequence `expected` (0: the job's first); returns the new sequence.

        A publish without a response is repeated. If the repetition is rejected because the first one was stored, the
        message counts as stored. deadline: the event-loop time at which this method stops repeating; None: never.
        payload: as in `envelope`.

        Raises Superseded when the job has another successor; Refused when JetStream rejects the message for lack of
        space or a limit, or when its streams are wrong; LeaderBehind when the stream's leader has not applied
        `expected` within `behind_seconds`; BrokerUnavailable when the outcome is unknown at the deadline.
        """
        self._refuse_broken_streams()
        ready = envelope(message, expected, payload)
        loop = asyncio.get_running_loop()
        attempt = 0
        behind_until: float | None = None
        while True:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise BrokerUnavailable("NATS did not confirm the message in time; it may or may not be stored")
            try:
                ack = await self._broker.publish(
                    ready.subject, ready.payload, ready.headers, timeout=min(2.0, left or 2.0)
                )
                if ack.error is None:
                    if ack.duplicate and not attempt and _starts_further_run(message):
                        # Another request stored this message. Its run may since have finished and left the stream.
                        raise Superseded("another request has started the next run of the job")
                    return ack.seq
                if ack.error.err_code == BEING_STORED:
                    raise BrokerUnavailable("the message is being replicated")
                if ack.error.err_code not in WRONG_LAST_SEQUENCE:
                    raise Refused(f"JetStream rejected the message: {ack.error.description}.")
                stored = await self._resolve_conflict(message, ready, expected, attempt)
                if stored is not None:
                    return stored
            except (BrokerUnavailable, JetStreamError) as error:
                if isinstance(error, LeaderBehind):
                    behind_until = behind_until or loop.time() + self._behind_seconds
                    if loop.time() > behind_until:
                        raise
                self._log.debug(
                    "publish_repeated",
                    message="the outcome of a publish is unknown: repeating it",
                    subject=ready.subject,
                    error=str(error),
                )
            delay = _RETRY_DELAYS[min(attempt, len(_RETRY_DELAYS) - 1)]
            attempt += 1
            await asyncio.sleep(delay if left is None else max(0.0, min(delay, left)))

    async def publish_new(self, jobs: Sequence[Due], deadline: float) -> None:
        """Publish new jobs, all or none, in one atomic batch (nats-server >= 2.12, at most 1,000 jobs).

        Repeating a batch is safe: its jobs are new, so JetStream rejects the repetition if the first one was stored.
        deadline: the event-loop time at which this method stops repeating. Raises Refused or BrokerUnavailable, as
        `publish` does.
        """
        self._refuse_broken_streams()
        loop = asyncio.get_running_loop()
        ready = [envelope(job, expected=0) for job in jobs]
        attempt = 0
        while deadline > loop.time():
            try:
                error = await self._publish_batch(ready, deadline)
                if error is None:
                    return
                if error.err_code not in WRONG_LAST_SEQUENCE | {DUPLICATE_IN_BATCH}:
                    raise Refused(f"JetStream rejected the jobs: {error.description}.")
                last = await self.last(jobs[-1].job_id)
                if last is not None:
                    return  # an earlier attempt to publish this batch succeeded
            except (BrokerUnavailable, JetStreamError) as error_:
                self._log.debug("publish_repeated", batch=len(jobs), error=str(error_))
            await asyncio.sleep(_RETRY_DELAYS[min(attempt, len(_RETRY_DELAYS) - 1)])
            attempt += 1
        raise BrokerUnavailable("NATS did not confirm the jobs in time; they may or may not be stored")

    def _refuse_broken_streams(self) -> None:
        if (problem := self._problem()) is not None:
            raise Refused(problem)

    async def _publish_batch(self, ready: list[Envelope], deadline: float) -> ApiError | None:
        """Publish the batch once. Returns JetStream's error, or None when the batch is stored.

        The server responds to the first message, so that a rejected batch stops early, and to the commit. The commit
        has a longer time-out than a single message: resending the batch would add load to a server that is still busy
        with it.
        """

        def timeout(most: float, reserve: float = 0.0) -> float:
            return max(0.1, min(most, deadline - asyncio.get_running_loop().time() - reserve))

        batch_id = secrets.token_hex(16)
        for entry in ready:  # check all sizes first: a batch that cannot be sent whole is not sent at all
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
                return (await self._broker.publish(entry.subject, entry.payload, headers, timeout(10.0, 1.0))).error
            if number == 1:
                answer = await self._broker.request(entry.subject, entry.payload, timeout(2.0), headers)
                if answer.data:  # an empty response means that the batch may continue
                    return msgspec.json.decode(answer.data, type=PubAck).error
            else:
                self._broker.send(entry.subject, entry.payload, headers=headers, linger=0)
        return None

    async def last(self, job_id: str) -> Stored | None:
        """Return the job's newest message that the stream's leader has applied, or None.

        An acknowledged publish is included unless it has since been removed. A message that a consumer delivered may be
        missing; use `newest` for those. Raises BrokerUnavailable or JetStreamError.
        """
        return await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id))

    async def newest(self, job_id: str, known: int) -> Stored | None:
        """Return the job's newest message, or None, from a leader that has applied stream sequence `known`.

        known: the sequence of a message that a consumer delivered. Raises LeaderBehind when the leader has not applied
        it yet, BrokerUnavailable or JetStreamError.
        """
        last = await self.last(job_id)
        if last is not None and last.sequence >= known:
            return last
        applied = await self._broker.last_sequence(subjects.JOBS)
        if applied < known:
            raise LeaderBehind(f"the stream's leader is at sequence {applied}, before {known}, which was delivered")
        return await self.last(job_id)  # again: the leader may have applied the message between the two responses

    async def _resolve_conflict(
        self, message: AnyJobMessage, ready: Envelope, expected: int, attempt: int
    ) -> int | None:
        """Handle a rejection by the successor fence.

        Returns the sequence of our message if an earlier publish stored it, None to publish again. Raises Superseded
        when the job has another successor, LeaderBehind, or what `last` raises.
        """
        last = await self.newest(message.job_id, expected)
        if last is None:
            if not expected:
                # A message of this job is being stored, or was stored and removed: the next publish shows which.
                return None
            raise Superseded("the job's messages are gone: it has finished and was recorded")
        if last.data == ready.payload:
            return last.sequence
        if last.sequence == expected:
            return None
        if last.sequence < expected:
            # The predecessor is gone. Only a message after one's predecessor can be a leftover: of two copies of a
            # message, the first one wins.
            raise Superseded("another copy of the predecessor has replaced it")
        try:
            newest = messages.decode_job(last.subject, last.data)
        except UnusableMessage as error:
            if attempt < _ATTEMPTS_BEFORE_REMOVAL:  # its consumers store it as a dead letter, which removes it
                return None
            await self._remove_leftover(last, f"it is unusable ({error})")
            return None
        if isinstance(message, Canceled) and isinstance(newest, Due) and newest.not_before is not None:
            # The schedule fired between our look-up and our publish: the message that the server published is the job.
            raise Superseded("the schedule of the job has fired")
        if expected and newest.step < message.step:
            await self._remove_leftover(last, "it is a copy of an older message")
            return None
        raise Superseded(f"the job has already reached step {newest.step} at {messages.token(newest)}")

    async def _remove_leftover(self, last: Stored, reason: str) -> None:
        """Delete a leftover or foreign message that blocks its job. An unusable one also becomes a dead letter.

        Raises BrokerUnavailable or JetStreamError.
        """
        self._log.error(
            "stray_removed",
            message="removed a message that blocked its job",
            subject=last.subject,
            sequence=last.sequence,
            reason=reason,
        )
        await self._broker.delete(subjects.JOBS, last.sequence)
