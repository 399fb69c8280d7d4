"""Counts the attempts that began. The count decides when a job has no attempts left, not the number of deliveries.

A message may be delivered and never run, because its worker was frozen or its event loop was blocked. An attempt
therefore counts from its start. The first delivery of a hand-over writes nothing: its progress ticks or its failed
attempt show that it began. Every redelivery that will run first stores a claim on
`heimdex.checkpoints.<stage>.<job_id>`. At most one attempt goes uncounted: a first delivery that vanishes before its
first tick.

The broker accepts a claim only as the successor of the claim that was read. A delivery whose claim is rejected was
redelivered meanwhile: another worker runs the job.
"""

import asyncio
import secrets
from datetime import datetime
from typing import Final

import msgspec

from heimdex_contracts import messages, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, UnusableMessage
from heimdex_contracts.messages import Claim, Due, Progress
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import (
    BEING_STORED,
    WRONG_LAST_SEQUENCE,
    Broker,
    JetStreamError,
    Stored,
)
from heimdex_contracts.runtime.jetstream.latest_progress import latest_progress
from heimdex_contracts.runtime.logs import Logger

RETRY_SECONDS: Final = 0.5
#: How long a worker that is connected to NATS waits for a claim to be read or stored. After that, the attempt runs
#: without a claim, and its first tick shows that it began: no attempt fails because of this stream.
WITHIN_SECONDS: Final = 5.0


class ClaimTaken(HeimdexError):
    """Another delivery of the job has claimed the next attempt: this one must neither run nor settle the message."""


class Begun(msgspec.Struct, frozen=True):
    """What is known of the attempts of a hand-over that began before this delivery.

    attempt: the number of the last one, including those before a hand-back; 0 if none began. reported: it reported its
    error, or none began. vanished: its process was lost: the worker's, or the attempt's own. started_at: its start, if
    it is known. progress: percent of the job that it reported. sequence: that of its claim in the stream; 0: no claim.
    """

    attempt: int
    reported: bool = True
    vanished: bool = False
    started_at: datetime | None = None
    progress: int = 0
    sequence: int = 0


class Claims:
    """The claims of one worker. stopping: set when the worker stops; nothing is retried after that."""

    def __init__(self, broker: Broker, stopping: asyncio.Event, log: Logger) -> None:
        self._broker = broker
        self._stopping = stopping
        self._log = log
        #: Identifies this process in its claims.
        self._token = secrets.token_hex(8)

    async def begun(self, due: Due) -> Begun:
        """Return what is known of the attempts that began. Raises BrokerUnavailable when the worker stops before."""
        stored, tick = await self._stored(due), await self._tick(due)
        sequence = stored.sequence if stored is not None else 0
        claim = _of(stored, due)
        if claim is not None and (tick is None or claim.attempt >= tick.attempt):
            reported = claim.ended or (tick is not None and tick.attempt == claim.attempt and tick.ended)
            progress = tick.progress if tick is not None else 0
            vanished = claim.vanished or not reported
            return Begun(claim.attempt, reported, vanished, claim.started_at, progress, sequence)
        if tick is not None and tick.attempt > due.attempts:
            return Begun(tick.attempt, tick.ended, not tick.ended, tick.started_at, tick.progress, sequence)
        return Begun(due.attempts, sequence=sequence)

    async def claim(self, due: Due, attempt: int, started_at: datetime, expected: int) -> int | None:
        """Store that this attempt begins. expected: the sequence of the claim that was read; 0: there was none.

        Returns the claim's sequence, or None if it could not be stored, which is logged. Raises ClaimTaken, and
        BrokerUnavailable when the worker stops before.
        """
        return await self._publish(self._claim(due, attempt, started_at), due, expected)

    async def report_end(
        self, due: Due, attempt: int, started_at: datetime, expected: int, *, vanished: bool
    ) -> int | None:
        """Store that this attempt reported an error, before its delivery is returned. As `claim`.

        vanished: the attempt ran in a process of its own, which was lost.
        """
        claim = self._claim(due, attempt, started_at)
        return await self._publish(msgspec.structs.replace(claim, ended=True, vanished=vanished), due, expected)

    async def remove(self, due: Due) -> None:
        """Remove the claim of a hand-over that has a successor, if there is one. Never raises an error of NATS.

        The stream removes a claim that is left over when it reaches its maximum age.
        """
        subject = subjects.checkpoint_subject(due.stage, due.job_id)
        try:
            stored = await self._broker.last_message(subjects.CHECKPOINTS, subject)
            if stored is not None and ((claim := _decoded(stored)) is None or claim.step <= due.step):
                await self._broker.delete_of(subjects.CHECKPOINTS, subject, stored.sequence)
        except (BrokerUnavailable, JetStreamError) as error:
            self._log.debug("claim_not_removed", job_id=due.job_id, message=str(error))

    def _claim(self, due: Due, attempt: int, started_at: datetime) -> Claim:
        return Claim(
            job_id=due.job_id,
            step=due.step,
            stage=due.stage,
            attempt=attempt,
            token=self._token,
            started_at=started_at,
        )

    async def _stored(self, due: Due) -> Stored | None:
        gives_up_at = asyncio.get_running_loop().time() + WITHIN_SECONDS
        async for _ in repeat(RETRY_SECONDS, RETRY_SECONDS, stop=self._stopping):
            try:
                subject = subjects.checkpoint_subject(due.stage, due.job_id)
                return await self._broker.last_message(subjects.CHECKPOINTS, subject)
            except (BrokerUnavailable, JetStreamError) as error:
                if self._gives_up(gives_up_at, due, str(error)):
                    return None
        raise BrokerUnavailable("the attempts that began could not be read before the worker stopped")

    async def _tick(self, due: Due) -> Progress | None:
        try:
            return await latest_progress(self._broker, due)
        except (BrokerUnavailable, JetStreamError):
            return None  # its stream is in memory: without it, too, the claims count

    async def _publish(self, claim: Claim, due: Due, expected: int) -> int | None:
        subject = subjects.checkpoint_subject(claim.stage, claim.job_id)
        payload = messages.encode(claim)
        end = ".ended" if claim.ended else ""
        gives_up_at = asyncio.get_running_loop().time() + WITHIN_SECONDS
        async for _ in repeat(RETRY_SECONDS, RETRY_SECONDS, stop=self._stopping):
            headers = {
                "Nats-Msg-Id": f"{claim.job_id}.{claim.step}.{claim.attempt}.{claim.token}{end}",
                "Nats-Expected-Last-Subject-Sequence": str(expected),
                "traceparent": tracing.child(due.trace),
            }
            try:
                ack = await self._broker.publish(subject, payload, headers)
                if ack.error is not None and ack.error.err_code in WRONG_LAST_SEQUENCE:
                    stored = await self._broker.last_message(subjects.CHECKPOINTS, subject)
                    if stored is not None and stored.data == payload:
                        return stored.sequence  # an earlier publish, whose outcome was unknown
                    expected = self._unless_taken(claim, stored, due)
                    headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
                    ack = await self._broker.publish(subject, payload, headers)
                if ack.error is None:
                    return ack.seq
                if ack.error.err_code not in WRONG_LAST_SEQUENCE | {BEING_STORED}:
                    self._log_missing(due, ack.error.description)
                    return None
            except (BrokerUnavailable, JetStreamError, msgspec.DecodeError) as error:
                if self._gives_up(gives_up_at, due, str(error)):
                    return None
        raise BrokerUnavailable("the claim was not stored before the worker stopped")

    def _unless_taken(self, claim: Claim, stored: Stored | None, due: Due) -> int:
        """Return the sequence that a claim must follow, or raise ClaimTaken if another delivery has claimed."""
        other = _of(stored, due)
        if other is not None and (other.token, other.attempt) != (claim.token, claim.attempt):
            raise ClaimTaken(f"another delivery has claimed the attempt {other.attempt}")
        later = _decoded(stored) if stored is not None else None
        if claim.ended and later is not None and later.step > claim.step:
            # This process was frozen; the job has come to this stage again since, and that claim must stay.
            raise ClaimTaken("a later hand-over of the job to this stage has a claim")
        return 0 if stored is None else stored.sequence

    def _gives_up(self, at: float, due: Due, reason: str) -> bool:
        """Return whether to go on without the stream. While NATS is down, nothing can go on."""
        if not self._broker.connected or asyncio.get_running_loop().time() < at:
            return False
        self._log_missing(due, reason)
        return True

    def _log_missing(self, due: Due, reason: str) -> None:
        self._log.warning(
            "claim_not_stored",
            job_id=due.job_id,
            message="the attempt runs without a claim: if its worker is lost, it may not be counted",
            reason=reason,
        )


def _decoded(stored: Stored) -> Claim | None:
    try:
        return messages.decode_claim(stored.subject, stored.data)
    except UnusableMessage:
        return None


def _of(stored: Stored | None, due: Due) -> Claim | None:
    """Return the claim of this hand-over. A claim of an earlier hand-over to the same stage does not count."""
    claim = _decoded(stored) if stored is not None else None
    return claim if claim is not None and claim.step == due.step else None
