"""A worker that looks again at two installations after a moment, not after some seconds."""

from heimdex_contracts.runtime.jetstream import installations
from heimdex_stage_worker.main import main

installations.AGAIN_SECONDS = 0.2  # type: ignore[misc]
main()
