"""A status store that kills itself once, after the commit of a job's terminal event and before it publishes the
callback.
"""

from typing import Any

from heimdex_status_store.callback_outbox import CallbackOutbox
from heimdex_status_store.main import main
from tests.support.launchers.crash_points import die_once

publish = CallbackOutbox.publish


async def die_then_publish(self: CallbackOutbox, *arguments: Any) -> bool:
    die_once()
    return await publish(self, *arguments)


CallbackOutbox.publish = die_then_publish  # type: ignore[method-assign]
main()
