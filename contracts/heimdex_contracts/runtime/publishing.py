"""Publishing a job's next message: one successor, and an outcome that is known in the end.

Every message on `heimdex.jobs.*.<job_id>` names the stream sequence of the message that it follows, and the broker
accepts one successor only. That is the fence against twins, thawed workers and late hand-overs.
"""

import asyncio
from typing import Final

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, Superseded, UnusableMessage
from heimdex_contracts.messages import AnyJobMessage
from heimdex_contracts.runtime.broker import BEING_STORED, WRONG_LAST_SEQUENCE, Broker, JetStreamError, Stored
from heimdex_contracts.runtime.logs import Logger

#: JetStream has no room, or its limits forbid the message: repeated by whoever holds the job, refused by the gateway.
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

#: How many tries an unusable message in the way is left to its consumers before it is removed.
_PATIENCE: Final = 5


class Refused(HeimdexError):
    """JetStream refused the message for a reason of its own (no space, limits); nothing was stored."""


def message_id(message: AnyJobMessage) -> str:
    """`Nats-Msg-Id`: the same for every repetition of one hand-over. Twins differ by what they hand over."""
    return f"{message.job_id}.{message.step}.{messages.token(message)}"


class Publisher:
    """Publishes on HEIMDEX_JOBS for one process."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self._broker = broker
        self._log = log

    async def publish(self, message: AnyJobMessage, expected: int, deadline: float | None = None) -> int:
        """Publish as the successor of stream sequence `expected` (0: the job's first); returns the new sequence.

        deadline: event-loop time after which it gives up with BrokerUnavailable; None: never. A publish without an
        answer is repeated; a repeat that is refused because the first one was stored counts as stored.
        Raises Superseded when the job has another successor, Refused when JetStream has no room for it.
        """
        subject = subjects.job_subject(messages.token(message), message.job_id)
        payload = messages.encode(message)
        headers = {
            "Nats-Msg-Id": message_id(message),
            "Nats-Expected-Last-Subject-Sequence": str(expected),
            "Nats-Expected-Last-Subject-Sequence-Subject": subjects.job_filter(message.job_id),
        }
        if message.trace:
            headers["traceparent"] = message.trace
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise BrokerUnavailable("NATS did not store the message in time; whether it did later is not known")
            try:
                ack = await self._broker.publish(subject, payload, headers, timeout=min(2.0, left or 2.0))
                if ack.error is None:
                    return ack.seq
                if ack.error.err_code == BEING_STORED:
                    raise BrokerUnavailable("the message is being replicated")
                if ack.error.err_code not in WRONG_LAST_SEQUENCE:
                    raise Refused(f"JetStream refused the message: {ack.error.description}.")
                stored = await self._look(message, headers["Nats-Msg-Id"], expected, attempt)
                if stored is not None:
                    return stored
            except (BrokerUnavailable, JetStreamError) as error:
                self._log.debug(
                    "publish_repeated",
                    message="a publish has no known outcome yet: repeating it",
                    subject=subject,
                    error=str(error),
                )
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            attempt += 1
            await asyncio.sleep(pause if left is None else max(0.0, min(pause, left)))

    async def last(self, job_id: str) -> Stored | None:
        """The job's newest message in the stream. Raises BrokerUnavailable or JetStreamError."""
        return await self._broker.last_message(subjects.JOBS, subjects.job_filter(job_id))

    async def _look(self, message: AnyJobMessage, own_id: str, expected: int, attempt: int) -> int | None:
        """After a refusal: our own sequence if we had been stored, None to try again; else raises Superseded."""
        last = await self.last(message.job_id)
        if last is None:
            raise Superseded("the job's messages are gone: it was finished and recorded")
        if last.headers.get("Nats-Msg-Id") == own_id and last.data == messages.encode(message):
            return last.sequence
        if last.sequence == expected:
            return None
        try:
            found = messages.decode_job(last.subject, last.data)
        except UnusableMessage as error:
            if attempt < _PATIENCE:  # whoever consumes it sets it aside, which removes it
                return None
            await self._remove_stray(last, f"it is unusable ({error})")
            return None
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
