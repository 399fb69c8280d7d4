"""A status store that kills itself once, after the commit of a batch and before its acknowledgement."""

from typing import Any

from heimdex_status_store.main import main
from heimdex_status_store.recorder import Recorder
from tests.support.launchers.crash_points import die_once

acknowledge = Recorder._acknowledge


async def die_then_acknowledge(self: Recorder, *arguments: Any) -> None:
    die_once()
    await acknowledge(self, *arguments)


Recorder._acknowledge = die_then_acknowledge  # type: ignore[method-assign]
main()
