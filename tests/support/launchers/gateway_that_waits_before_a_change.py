"""A gateway that waits for the file at TEST_GO_ON, after it has read a job and before it publishes a cancel.

It creates the same path with the suffix `.waiting` when it begins to wait.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.jobs.change import JobChanges
from heimdex_gateway.main import main
from tests.support.launchers.arguments import construct_with

publish = JobChanges.publish
GO_ON = Path(os.environ["TEST_GO_ON"])


async def wait_and_publish(*arguments: Any) -> None:
    GO_ON.with_suffix(".waiting").touch()
    while not GO_ON.exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)
    await publish(*arguments)


JobChanges.publish = wait_and_publish  # type: ignore[method-assign]
construct_with(JobChanges, answered_within_seconds=60.0)
construct_with(Gateway, max_seconds=60.0)
main()
