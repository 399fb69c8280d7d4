"""A status store that takes five messages of a stream and no more, until it has recorded some."""

from heimdex_status_store import recorder
from heimdex_status_store.main import main

recorder.CAPACITY = 5
main()
