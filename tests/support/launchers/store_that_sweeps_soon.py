"""A status store that compares a row with the stream when it has not changed for a second, instead of a minute."""

from datetime import timedelta

from heimdex_status_store import reconciler
from heimdex_status_store.main import main

reconciler.REST = timedelta(seconds=1)  # type: ignore[misc]
reconciler.CHECK_SECONDS = 0.5  # type: ignore[misc]
main()
