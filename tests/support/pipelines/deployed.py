"""Job types that a test declares in the environment, so that an old and a new deploy run beside each other.

`declared` returns the settings of a deploy. Each attempt appends a line to the file TEST_DEPLOYED_RUNS. A job whose
type begins with `gated` runs until `open_gate`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heimdex import Context, Pipeline, Stage
from tests.support.waiting import eventually

VARIABLE = "TEST_DEPLOYED"
RUNS = "TEST_DEPLOYED_RUNS"


def declared(
    types: Mapping[str, Sequence[str]],
    formerly: Mapping[str, str] | None = None,
    backoff: Sequence[float] = (0.1, 0.1),
) -> dict[str, str]:
    """Return the settings of a deploy with these job types and their stages. formerly: a stage's former name."""
    value = {"types": {name: list(stages) for name, stages in types.items()}, "formerly": dict(formerly or {})}
    return {
        VARIABLE: json.dumps(value | {"backoff": list(backoff)}),
        "HEIMDEX_PIPELINES": __name__,
        "HEIMDEX_RETRY_BACKOFF_SECONDS": "",
    }


def runs(folder: Path) -> list[tuple[str, str, int]]:
    """Return every attempt that has started as (job id, stage, attempt), in order."""
    path = folder / "runs"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(words[0], words[1], int(words[2])) for words in map(str.split, lines)]


def open_gate(folder: Path) -> None:
    """Let the gated jobs of the deploys whose attempts are listed in this folder end."""
    (folder / "runs.gate").touch()


async def run(ctx: Context) -> None:
    with Path(os.environ[RUNS]).open("a") as file:  # noqa: ASYNC230  # a line on a local disk
        file.write(f"{ctx.job_id} {ctx.stage} {ctx.attempt}\n")
    if ctx.job_type.startswith("gated"):
        gate = Path(os.environ[RUNS] + ".gate")
        await eventually(gate.exists, timeout=600, what="the gate is open")
    if ctx.job_type.startswith("failing") and ctx.attempt == 1:
        raise RuntimeError("the script says so, attempt 1")


def _declared() -> tuple[Pipeline, ...]:
    value: dict[str, Any] = json.loads(os.environ.get(VARIABLE, '{"types": {"none": ["nothing"]}}'))
    formerly = value.get("formerly", {})
    return tuple(
        Pipeline(
            type=name,
            stages=tuple(
                Stage(stage, 1, f"{__name__}:run", formerly=(formerly[stage],) if stage in formerly else ())
                for stage in stages
            ),
            retry_backoff_seconds=tuple(value.get("backoff", ())),
        )
        for name, stages in value["types"].items()
    )


PIPELINES = _declared()
