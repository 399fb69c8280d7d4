"""A status store that SIGKILLs itself once, when a callback is due and the job's end is not acknowledged yet."""

from typing import Any

from heimdex_status_store.callback_outbox import CallbackOutbox
from heimdex_status_store.main import main
from tests.support.launchers.crash_points import die_once

publish = CallbackOutbox.publish


async def publish_then_die(self: CallbackOutbox, *arguments: Any) -> bool:
    stored = await publish(self, *arguments)
    die_once()
    return stored


CallbackOutbox.publish = publish_then_die  # type: ignore[method-assign]
main()
