"""A stage worker that learns of a job's earlier attempts only after it has received a cancel.

It creates the file at TEST_ASKED when it asks for them.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from heimdex_stage_worker.claims import Begun, Claims
from heimdex_stage_worker.main import main
from heimdex_stage_worker.worker import StageWorker

begun, on_canceled = Claims.begun, StageWorker._on_canceled
heard = asyncio.Event()


async def ask_slowly(*arguments: Any) -> Begun:
    earlier = await begun(*arguments)
    Path(os.environ["TEST_ASKED"]).touch()  # noqa: ASYNC240  # once
    await heard.wait()
    return earlier


def hear(self: StageWorker, *arguments: Any) -> None:
    on_canceled(self, *arguments)
    heard.set()


Claims.begun = ask_slowly  # type: ignore[method-assign]
StageWorker._on_canceled = hear  # type: ignore[method-assign]
main()
