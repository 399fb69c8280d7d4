"""A stage worker that SIGKILLs itself between publishing a job's next message and acknowledging the one it held.

It does so once: while the file named by TEST_DIED is not there, which it makes.
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
