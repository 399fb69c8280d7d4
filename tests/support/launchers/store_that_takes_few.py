"""A status store that holds at most TEST_TAKES unrecorded messages of a stream."""

import os

from heimdex_status_store.main import main
from heimdex_status_store.recorder import Recorder
from tests.support.launchers.arguments import construct_with

construct_with(Recorder, capacity=int(os.environ["TEST_TAKES"]))
main()
