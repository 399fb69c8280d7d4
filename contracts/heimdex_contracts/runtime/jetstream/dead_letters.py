"""Sets aside messages that nothing can be done with, where an operator can list, look at, replay or delete them.

They go to the stream HEIMDEX_UNUSABLE on `heimdex.unusable.<rest of the subject>`, with the reason in a header:
`nats stream view HEIMDEX_UNUSABLE` shows them, `nats pub <Heimdex-Subject> ...` replays one.
"""

from typing import Final

from heimdex_contracts import subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import header_block
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery
from heimdex_contracts.runtime.logs import Logger

#: What is kept of a message at most; less where the server's max_payload is smaller.
MAX_PAYLOAD_BYTES: Final = 1024 * 1024 - 16 * 1024
#: Characters of a subject that are kept: the server ends the connection for too long a line.
MAX_SUBJECT_LENGTH: Final = 800
#: How long a message is put back whose copy NATS refuses.
REFUSED_DELAY_SECONDS: Final = 30.0
#: Room for a header that says what is missing.
_TRUNCATED_BYTES: Final = 64


class DeadLetters:
    """Sets messages aside for one process, and counts them."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self.count = 0
        self._broker = broker
        self._log = log

    async def store(self, msg: Delivery, reason: str) -> None:
        """Store a copy, log it once, acknowledge the original; leave it for a redelivery if NATS is away.

        Two consumers may find the same message unusable: its id makes the copy one, and only the first one logs it.
        """
        place = msg.metadata
        sequence = place.sequence
        # A header is one line.
        headers = {
            "Nats-Msg-Id": f"{place.stream}.{sequence}",
            "Heimdex-Reason": " ".join(reason.split())[:1000],
            "Heimdex-Subject": msg.subject,
            "Heimdex-Stream-Sequence": str(sequence),
            "traceparent": tracing.start(msg.headers.get("traceparent")),
        }
        room = self._broker.max_payload - len(header_block(headers)) - _TRUNCATED_BYTES
        payload = msg.data[: max(0, min(room, MAX_PAYLOAD_BYTES))]
        if len(payload) < len(msg.data):
            headers["Heimdex-Truncated"] = f"{len(payload)} of {len(msg.data)} bytes"
        try:
            subject = subjects.unusable_subject(msg.subject)[:MAX_SUBJECT_LENGTH].rstrip(".")
            ack = await self._broker.publish(subject, payload, headers)
        except BrokerUnavailable as error:
            self._log.warning(
                "unusable_waiting",
                message="an unusable message could not be set aside yet",
                subject=msg.subject,
                error=str(error),
            )
            msg.let_go()
            return
        if ack.error is not None:
            self._log.error(
                "unusable_refused",
                message="an unusable message could not be set aside",
                subject=msg.subject,
                error=ack.error.description,
            )
            msg.nak(REFUSED_DELAY_SECONDS)
            return
        if not ack.duplicate:
            self.count += 1
            self._log.error(
                "message_unusable",
                message="set aside an unusable message",
                subject=msg.subject,
                stream=place.stream,
                sequence=sequence,
                bytes=len(msg.data),
                reason=reason[:1000],
                count=self.count,
            )
        msg.term()
