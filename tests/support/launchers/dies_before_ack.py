"""A stage worker that kills itself after it has published a job's next message, before it acknowledges the delivery.

It does so once: it creates the file at TEST_DIED, and lives on while that file exists.
"""

import os
import signal
from pathlib import Path
from typing import Any

from heimdex_contracts.runtime.jetstream import publisher
from heimdex_stage_worker.main import main

published = publisher.Publisher.publish


async def publish_and_die(self: publisher.Publisher, *arguments: Any, **named: Any) -> int:
    sequence = await published(self, *arguments, **named)
    died = Path(os.environ["TEST_DIED"])
    if not died.exists():  # noqa: ASYNC240  # once
        died.touch()  # noqa: ASYNC240
        os.kill(os.getpid(), signal.SIGKILL)
    return sequence


publisher.Publisher.publish = publish_and_die  # type: ignore[method-assign]
main()
