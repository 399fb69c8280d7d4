"""A stage worker that compares two installations again after 0.2 s, instead of some seconds."""

from heimdex_contracts.runtime.jetstream.installations import Watch
from heimdex_stage_worker.main import main
from tests.support.launchers.arguments import construct_with

construct_with(Watch, again_seconds=0.2)
main()
