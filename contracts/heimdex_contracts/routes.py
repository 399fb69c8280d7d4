"""The route of a job: the names of its stages in order, fixed at submission and carried by each of its messages.

A worker hands over along the route of the message. Its own pipeline may be older or newer: a deploy changes pipelines
while jobs are under way. Pure.
"""

from collections.abc import Sequence

from heimdex_contracts.messages import AnyJobMessage
from heimdex_contracts.pipelines import Pipeline


def route_of(message: AnyJobMessage, pipeline: Pipeline | None) -> tuple[str, ...]:
    """Return the route of this message's job. Messages of releases without routes have that of their pipeline.

    A message at a former name of a stage has that name in its route.
    """
    if message.route or pipeline is None:
        return message.route
    return tuple(message.stage if message.stage in stage.formerly else stage.name for stage in pipeline.stages)


def stage_after(route: Sequence[str], stage: str) -> str | None:
    """Return the stage after `stage`, or None after the last one. Raises ValueError for a stage not in `route`."""
    position = route.index(stage) + 1
    return route[position] if position < len(route) else None


def progress_along(route: Sequence[str], pipeline: Pipeline | None, stage: str, fraction: float = 0.0) -> int:
    """Return the percentage of the whole job, 0 to 99, when `fraction` (0 to 1) of this stage of the route is done.

    Only a completed job has 100. A stage's weight is its expected seconds in `pipeline`. A stage that the pipeline does
    not have weighs the mean of the others; where all stages expect 0 s, all have the same weight. Returns 0 for a stage
    that is not in the route.
    """
    if stage not in route:
        return 0
    stages = () if pipeline is None else pipeline.stages
    known = {name: entry.expected_seconds for entry in stages for name in entry.names}
    weights = [known[name] for name in route if name in known]
    mean = sum(weights) / len(weights) if weights else 0.0
    weights = [known.get(name, mean) for name in route]
    if sum(weights) <= 0:
        weights = [1.0] * len(route)
    position = route.index(stage)
    done = sum(weights[:position]) + weights[position] * min(1.0, max(0.0, fraction))
    return min(99, int(100 * done / sum(weights)))
