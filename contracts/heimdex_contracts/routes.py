"""The route of a job: the names of its stages in order, fixed at submission and carried by each of its messages.

A worker hands over along the route of the message. Its own pipeline may be older or newer: a deploy changes pipelines
while jobs are under way. Pure.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from heimdex_contracts.messages import AnyJobMessage
from heimdex_contracts.pipelines import Pipeline, Stage


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
    share = _shares_of(tuple(route), pipeline).get(stage)
    if share is None:
        return 0
    done = share.before + share.weight * min(1.0, max(0.0, fraction))
    return min(99, int(100 * done / share.total))


class _Share(NamedTuple):
    """A stage's weight in its route, the sum of those before it, and the sum of all."""

    before: float
    weight: float
    total: float


def _shares_of(route: tuple[str, ...], pipeline: Pipeline | None) -> dict[str, _Share]:
    """Return the share of each stage. A pipeline's jobs have few routes, and each job needs its shares many times."""
    if pipeline is None:
        return _computed(route, ())
    cached = _cache.get(pipeline.type)
    if cached is None or cached[0] is not pipeline or len(cached[1]) > _MAX_ROUTES:
        cached = _cache[pipeline.type] = (pipeline, {})
    shares = cached[1].get(route)
    if shares is None:
        shares = cached[1][route] = _computed(route, pipeline.stages)
    return shares


#: By job type: its pipeline, and the shares of each route of its jobs.
_cache: Final[dict[str, tuple[Pipeline, dict[tuple[str, ...], dict[str, _Share]]]]] = {}
_MAX_ROUTES: Final = 1000


def _computed(route: tuple[str, ...], stages: Sequence[Stage]) -> dict[str, _Share]:
    known = {name: entry.expected_seconds for entry in stages for name in entry.names}
    weights = [known[name] for name in route if name in known]
    mean = sum(weights) / len(weights) if weights else 0.0
    weights = [known.get(name, mean) for name in route]
    if sum(weights) <= 0:
        weights = [1.0] * len(route)
    return {
        name: _Share(sum(weights[:position]), weights[position], sum(weights))
        for position, name in reversed(list(enumerate(route)))
    }
