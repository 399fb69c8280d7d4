"""A gateway that waits, between its look at a job and its publish of a cancel, for the file that TEST_GO_ON names."""

import asyncio
import os
from pathlib import Path
from typing import Any

from heimdex_gateway.jobs import change
from heimdex_gateway.main import main
from heimdex_gateway.routes import request

publish = change.JobChanges.publish
GO_ON = Path(os.environ["TEST_GO_ON"])


async def wait_and_publish(*arguments: Any) -> None:
    GO_ON.with_suffix(".waiting").touch()
    while not GO_ON.exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)
    await publish(*arguments)


change.JobChanges.publish = wait_and_publish  # type: ignore[method-assign]
change.ANSWERED_WITHIN_SECONDS = 60.0  # type: ignore[misc]
request.MAX_SECONDS = 60.0  # type: ignore[misc]
main()
