"""The job type that ships: a mock of a video pipeline. This declaration and three small functions are all of it."""

from heimdex_contracts.pipelines import Pipeline, Stage

_STAGES = "heimdex_stage_worker.stages"

PIPELINES = (
    Pipeline(
        type="mock_process",
        stages=(
            Stage("extracting", expected_seconds=2, code=f"{_STAGES}.extracting:run"),
            Stage("analyzing", expected_seconds=3, code=f"{_STAGES}.analyzing:run"),
            Stage("indexing", expected_seconds=1, code=f"{_STAGES}.indexing:run"),
        ),
        retry_backoff_seconds=(1, 2, 4),
    ),
)
