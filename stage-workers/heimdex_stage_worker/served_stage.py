"""What a worker needs to run its stage for the jobs of one type."""

from typing import NamedTuple

from heimdex.binding import BoundFunction
from heimdex_contracts.pipelines import Pipeline, Stage


class ServedStage(NamedTuple):
    """The stage as one job type declares it. backoff: its retry policy, one delay in seconds per retry."""

    pipeline: Pipeline
    declared: Stage
    function: BoundFunction
    backoff: tuple[float, ...]
