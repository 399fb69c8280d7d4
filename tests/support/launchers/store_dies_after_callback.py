"""A status store that kills itself once, after it has published a callback and before it acknowledges the job's
terminal event.
"""

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
