"""A status store that is patient with another database's for a second, and waits as long for it to come back.

TEST_QUIET_SECONDS: how long a database that was refused waits; by default as long as ever.
"""

import os

from heimdex_status_store import installation
from heimdex_status_store.main import main

installation.PATIENCE_SECONDS = 1.0  # type: ignore[misc]
installation.QUIET_SECONDS = float(os.environ.get("TEST_QUIET_SECONDS", installation.QUIET_SECONDS))  # type: ignore[misc]
main()
