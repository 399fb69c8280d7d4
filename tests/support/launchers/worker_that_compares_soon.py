"""A stage worker that compares two installations again after 0.2 s, instead of some seconds."""

from heimdex_contracts.runtime.jetstream import installations
from heimdex_stage_worker.main import main

installations.AGAIN_SECONDS = 0.2  # type: ignore[misc]
main()
