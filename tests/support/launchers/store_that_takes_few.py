"""A status store that takes TEST_TAKES messages of a stream and no more, until it has recorded some."""

import os

from heimdex_status_store import recorder
from heimdex_status_store.main import main

recorder.CAPACITY = int(os.environ["TEST_TAKES"])  # type: ignore[misc]
main()
