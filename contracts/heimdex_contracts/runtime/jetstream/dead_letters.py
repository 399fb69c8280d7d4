"""Stores dead letters: messages that cannot be processed, which an operator can list, inspect, replay or delete.

Dead letters go to the stream HEIMDEX_UNUSABLE on `heimdex.unusable.<rest of the subject>`, with the reason in a header.
`nats stream view HEIMDEX_UNUSABLE` shows them, `nats pub <Heimdex-Subject> ...` replays one.
"""

from typing import Final

from heimdex_contracts import subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import header_block
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery
from heimdex_contracts.runtime.logs import Logger

#: Longer payloads are truncated to this size, or to a smaller one where the server's max_payload requires it.
MAX_PAYLOAD_BYTES: Final = 1024 * 1024 - 16 * 1024
#: Longer subjects are truncated to this many characters: the server ends the connection for a protocol line too long.
MAX_SUBJECT_LENGTH: Final = 800
#: The redelivery delay of a message whose dead letter NATS rejected.
REFUSED_DELAY_SECONDS: Final = 30.0
#: Bytes reserved for the header `Heimdex-Truncated`.
_TRUNCATED_BYTES: Final = 64


class DeadLetters:
    """Stores and counts the dead letters of one process."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self.count = 0
        self._broker = broker
        self._log = log

    async def store(self, msg: Delivery, reason: str) -> None:
        """Store a copy of the message, log it once, and terminate the original.

        During an outage of NATS, the original is left to be redelivered after its ack wait. If NATS rejects the copy,
        the original is redelivered after REFUSED_DELAY_SECONDS. Two consumers may reject the same message: the message
        id deduplicates the copies, and only the process that stored the first one logs it.
        """
        metadata = msg.metadata
        sequence = metadata.sequence
        # A header value must be a single line.
        headers = {
            "Nats-Msg-Id": f"{metadata.stream}.{sequence}",
            "Heimdex-Reason": " ".join(reason.split())[:1000],
            "Heimdex-Subject": msg.subject,
            "Heimdex-Stream-Sequence": str(sequence),
            "traceparent": tracing.start(msg.headers.get("traceparent")),
        }
        max_bytes = self._broker.max_payload - len(header_block(headers)) - _TRUNCATED_BYTES
        payload = msg.data[: max(0, min(max_bytes, MAX_PAYLOAD_BYTES))]
        if len(payload) < len(msg.data):
            headers["Heimdex-Truncated"] = f"{len(payload)} of {len(msg.data)} bytes"
        try:
            subject = subjects.unusable_subject(msg.subject)[:MAX_SUBJECT_LENGTH].rstrip(".")
            ack = await self._broker.publish(subject, payload, headers)
        except BrokerUnavailable as error:
            self._log.warning(
                "unusable_waiting",
                message="cannot store a dead letter yet: the message will be redelivered",
                subject=msg.subject,
                error=str(error),
            )
            msg.let_go()
            return
        if ack.error is not None:
            self._log.error(
                "unusable_refused",
                message="JetStream rejected a dead letter: the message will be redelivered",
                subject=msg.subject,
                error=ack.error.description,
            )
            msg.nak(REFUSED_DELAY_SECONDS)
            return
        if not ack.duplicate:
            self.count += 1
            self._log.error(
                "message_unusable",
                message="stored an unusable message as a dead letter",
                subject=msg.subject,
                stream=metadata.stream,
                sequence=sequence,
                bytes=len(msg.data),
                reason=reason[:1000],
                count=self.count,
            )
        msg.term()
