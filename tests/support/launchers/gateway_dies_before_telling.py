"""A gateway that kills itself once, after a receiver has accepted a callback and before the result is published."""

from typing import Any

from heimdex_callbacks.dispatcher import Dispatcher
from heimdex_gateway.main import main
from tests.support.launchers.crash_points import die_once

settle = Dispatcher._settle


async def die_then_settle(self: Dispatcher, *arguments: Any) -> None:
    die_once()
    await settle(self, *arguments)


Dispatcher._settle = die_then_settle  # type: ignore[method-assign]
main()
