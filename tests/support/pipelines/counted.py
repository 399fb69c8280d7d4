"""A job type of three stages that record each attempt that starts. `Begun` is the interface for the test.

The stages of every fourth job take HEIMDEX_MOCK_TIME_SCALE seconds. Those of the others take no time, so that a job is
handed over as soon as it is delivered. The stage of `fail_at_stage` does not start.
"""

import asyncio
import os
from collections import Counter
from pathlib import Path

from heimdex import Context, Pipeline, Stage

FOLDER = "TEST_COUNTED_FOLDER"
STAGES = ("first", "second", "third")

PIPELINES = (
    Pipeline(
        type="counted",
        stages=tuple(Stage(name, expected_seconds=1, code=f"{__name__}:begin") for name in STAGES),
        retry_backoff_seconds=(0.1, 0.1, 0.1),
    ),
)


class Begun:
    """Counts the attempts that have started. Every service needs `env`: `system.env |= begun.env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        return {FOLDER: str(self.folder), "HEIMDEX_PIPELINES": __name__}

    def times(self) -> Counter[tuple[str, str]]:
        """Return how often each (stage, job id) has started."""
        counts: Counter[tuple[str, str]] = Counter()
        for stage in STAGES:
            path = self.folder / stage
            counts.update((stage, line) for line in (path.read_text().splitlines() if path.exists() else ()))
        return counts

    def twice(self) -> list[tuple[str, str]]:
        """Return each (stage, job id) that has started more than once."""
        return [begun for begun, count in self.times().items() if count > 1]


async def begin(ctx: Context) -> None:
    # With O_APPEND, the lines of several processes do not mix.
    with (Path(os.environ[FOLDER]) / ctx.stage).open("a") as runs:
        runs.write(f"{ctx.job_id}\n")
    if int(ctx.job_id[-1], 16) % 4 == 0:
        await asyncio.sleep(ctx.mock_time_scale)
