"""Publishes the message that must be stored before a delivery is settled: a failed attempt, the result of a callback.

A job's own messages are published by `publisher`, because each of them may have only one successor.
"""

import asyncio
from typing import Final

import msgspec

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Envelope
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.logs import Logger

RETRY_SECONDS: Final = 0.5


async def publish_until_stored(
    broker: Broker, topology: Topology, stream: str, message: Envelope, stopping: asyncio.Event, log: Logger
) -> None:
    """Publish the message to this stream, and retry until it is stored. The caller's lease must be renewed meanwhile.

    Each attempt waits until the stream and its consumers are correct, because JetStream drops a message for which no
    consumer exists. log: logs a message that JetStream rejects as `publish_refused`; it should be bound to the job.

    Raises BrokerUnavailable if `stopping` is set and the next attempt fails too.
    """
    async for _ in repeat(RETRY_SECONDS, RETRY_SECONDS, stop=stopping):
        await topology.until_whole(stream, stopping)
        try:
            ack = await broker.publish(message.subject, message.payload, message.headers)
        except (BrokerUnavailable, msgspec.DecodeError) as error:
            log.debug(
                "publish_repeated",
                message="the outcome of a publish is unknown: repeating it",
                subject=message.subject,
                error=str(error),
            )
        else:
            if ack.error is None:
                return
            log.error("publish_refused", message=ack.error.description)
    raise BrokerUnavailable(f"a message on {message.subject} was not stored before the process stopped")
