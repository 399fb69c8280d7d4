"""The response body of GET /job-types."""

from typing import Annotated, Any

import msgspec

from heimdex_contracts.pipelines import Pipelines


class StageOfType(msgspec.Struct, frozen=True):
    """A stage of a job type. expected_seconds: its usual duration."""

    name: str
    expected_seconds: Annotated[float, msgspec.Meta(ge=0)]


class JobType(msgspec.Struct, frozen=True):
    """A job type, with its stages in the order in which they run."""

    type: str
    stages: list[StageOfType]
    params: Annotated[
        dict[str, Any] | None, msgspec.Meta(description="the JSON schema of its jobs' `params`; null if they have none")
    ]


class JobTypes(msgspec.Struct, frozen=True):
    """All job types of this gateway, sorted by their names."""

    job_types: list[JobType]


def job_types(pipelines: Pipelines) -> JobTypes:
    """Return the job types of these pipelines."""
    return JobTypes(
        [
            JobType(
                pipeline.type,
                [StageOfType(stage.name, stage.expected_seconds) for stage in pipeline.stages],
                pipeline.params_schema,
            )
            for pipeline in map(pipelines.by_type.__getitem__, pipelines.types)
        ]
    )
