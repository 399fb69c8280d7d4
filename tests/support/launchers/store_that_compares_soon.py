"""A status store that tolerates a status store of another database for one second, instead of 15 s.

TEST_QUIET_SECONDS sets how long a refused database must see no such status store; by default it is unchanged.
"""

import os

from heimdex_status_store.installation import QUIET_SECONDS, Installation
from heimdex_status_store.main import main
from tests.support.launchers.arguments import construct_with

quiet_seconds = float(os.environ.get("TEST_QUIET_SECONDS", QUIET_SECONDS))
construct_with(Installation, patience_seconds=1.0, quiet_seconds=quiet_seconds)
main()
