"""A stage worker that receives the last tick of a job's earlier attempts only after it has received a cancel.

It creates the file at TEST_ASKED when it requests the tick.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from heimdex_contracts.messages import Progress
from heimdex_stage_worker import worker
from heimdex_stage_worker.main import main
from heimdex_stage_worker.worker import StageWorker

last_tick, on_canceled = worker.last_tick, StageWorker._on_canceled
heard = asyncio.Event()


async def ask_slowly(*arguments: Any) -> Progress | None:
    tick = await last_tick(*arguments)
    Path(os.environ["TEST_ASKED"]).touch()  # noqa: ASYNC240  # once
    await heard.wait()
    return tick


def hear(self: StageWorker, *arguments: Any) -> None:
    on_canceled(self, *arguments)
    heard.set()


worker.last_tick = ask_slowly
StageWorker._on_canceled = hear  # type: ignore[method-assign]
main()
