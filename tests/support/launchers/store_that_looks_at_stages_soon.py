"""A status store that checks the queues of the stages every 0.2 s, instead of every 5 s."""

from heimdex_status_store.main import main
from heimdex_status_store.stage_watch import StageWatch
from tests.support.launchers.arguments import construct_with

construct_with(StageWatch, look_seconds=0.2)
main()
