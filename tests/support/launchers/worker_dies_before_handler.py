"""A stage worker that kills itself once, after it has received a delivery and before it starts the attempt."""

from typing import Any

from heimdex_stage_worker.main import main
from heimdex_stage_worker.worker import StageWorker
from tests.support.launchers.crash_points import die_once

decide = StageWorker._outcome_of


async def die_then_decide(self: StageWorker, *arguments: Any) -> Any:
    die_once()
    return await decide(self, *arguments)


StageWorker._outcome_of = die_then_decide  # type: ignore[method-assign]
main()
