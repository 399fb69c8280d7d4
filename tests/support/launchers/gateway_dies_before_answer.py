"""A gateway that kills itself once, after JetStream has stored a message and before the gateway has responded."""

from typing import Any

from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_gateway.main import main
from tests.support.launchers.crash_points import die_once

published = Publisher.publish


async def publish_and_die(self: Publisher, *arguments: Any, **named: Any) -> int:
    sequence = await published(self, *arguments, **named)
    die_once()
    return sequence


Publisher.publish = publish_and_die  # type: ignore[method-assign]
main()
