"""A status store that holds at most TEST_TAKES unrecorded messages of a stream."""

import os

from heimdex_status_store import recorder
from heimdex_status_store.main import main

recorder.CAPACITY = int(os.environ["TEST_TAKES"])  # type: ignore[misc]
main()
