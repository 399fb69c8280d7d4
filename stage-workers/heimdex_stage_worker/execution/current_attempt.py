"""The attempt whose stage function the current task or thread runs.

It is set around the call of the function, and inherited by its child tasks and by `asyncio.to_thread`, but not by
threads that the function starts itself.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from heimdex_stage_worker.execution.attempt import Attempt

CURRENT: Final[ContextVar["Attempt | None"]] = ContextVar("heimdex_attempt", default=None)
