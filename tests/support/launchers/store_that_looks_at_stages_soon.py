"""A status store that checks the queues of the stages every 0.2 s, instead of every 5 s."""

from heimdex_status_store import stage_watch
from heimdex_status_store.main import main

stage_watch.LOOK_SECONDS = 0.2  # type: ignore[misc]
main()
