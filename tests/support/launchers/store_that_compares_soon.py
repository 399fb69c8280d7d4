"""A status store that tolerates a status store of another database for one second, instead of 15 s.

TEST_QUIET_SECONDS sets how long a refused database must see no such status store; by default it is unchanged.
"""

import os

from heimdex_status_store import installation
from heimdex_status_store.main import main

installation.PATIENCE_SECONDS = 1.0  # type: ignore[misc]
installation.QUIET_SECONDS = float(os.environ.get("TEST_QUIET_SECONDS", installation.QUIET_SECONDS))  # type: ignore[misc]
main()
