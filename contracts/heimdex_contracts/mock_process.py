"""The job type that ships with the project: a mock video pipeline. It is this declaration and three small functions."""

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
