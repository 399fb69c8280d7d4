"""The example of docs/pipelines.md: it loads, and its stages pass their outputs on."""

import re
import sys
from pathlib import Path

import msgspec
import pytest

from heimdex import Context, code
from heimdex.attempt_state import AttemptState
from heimdex_contracts import params, pipelines
from tests.support.histories import stage_run

DOCS = Path(__file__).parents[3] / "docs" / "pipelines.md"


def test_the_example_of_three_stages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(# films\.py\n.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "films.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "films", raising=False)
    pipeline = pipelines.load(["films"]).by_type["film"]
    state = AttemptState(job_id="some-id", job_type="film", stage="", attempt=1, expected_seconds=1, mock_time_scale=0)
    state.params = params.validated(b'{"source": "a.mp4"}', pipeline)
    bound = []
    for stage in pipeline.stages:
        function = code.load(pipeline, stage)
        bound.append(function.bound_names)
        arguments = function.arguments(Context(state), state)
        output = function.encoded(function.function(*arguments.positional, **arguments.keywords), state)
        state.finished = (*state.finished, stage_run(stage.name, output))
    assert bound == [("params",), ("ctx", "params", "probing"), ("scaling", "probing")]
    assert msgspec.json.decode(state.finished[-1].output) == {
        "seconds": 7.5,
        "files": ["some-id-320.mp4", "some-id-640.mp4"],
    }
