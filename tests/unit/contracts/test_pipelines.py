"""Job types as data, and the declarations that are refused."""

import sys
from types import ModuleType

import pytest

from heimdex_contracts import pipelines
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.mock_process import PIPELINES
from heimdex_contracts.pipelines import Pipeline, Stage

MOCK = PIPELINES[0]


def pipeline(*names: str, type: str = "made_up", seconds: float = 1) -> Pipeline:
    return Pipeline(type=type, stages=tuple(Stage(name, seconds, f"some.module:{name}") for name in names))


def test_mock_process_is_extracting_analyzing_indexing_with_three_retries() -> None:
    assert (MOCK.type, MOCK.stage_names) == ("mock_process", ("extracting", "analyzing", "indexing"))
    assert [stage.expected_seconds for stage in MOCK.stages] == [2, 3, 1]
    assert MOCK.retry_backoff_seconds == (1, 2, 4)


@pytest.mark.parametrize("name", ["", "Upper", "with space", "dot.ted", "st*r", "a>b", "1st", "x" * 65, "é", "a\n"])
def test_a_name_that_is_no_subject_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a letter first"):
        pipeline(name)
    with pytest.raises(ValueError, match="a letter first"):
        pipeline("fine", type=name)


@pytest.mark.parametrize("name", ["completed", "failed", "canceled", "later", "deleted", "status-store"])
def test_a_stage_with_a_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name is reserved"):
        pipeline(name)


def test_a_pipeline_without_stages_or_with_one_twice_or_with_negative_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        pipeline()
    with pytest.raises(ValueError, match="twice"):
        pipeline("a", "a")
    with pytest.raises(ValueError, match="negative expected_seconds"):
        pipeline("a", seconds=-1)


def test_collect_refuses_a_type_declared_twice_and_a_stage_with_two_functions() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        pipelines.collect([MOCK, MOCK])
    other = Pipeline(type="other", stages=(Stage("extracting", 1, "some.module:else"),))
    with pytest.raises(ValueError, match="two different functions"):
        pipelines.collect([MOCK, other])


def test_two_pipelines_may_share_a_stage_of_one_function() -> None:
    shared = Pipeline(type="other", stages=(MOCK.stages[1], Stage("painting", 1, "some.module:paint")))
    known = pipelines.collect([MOCK, shared])
    assert known.types == ("mock_process", "other")
    assert known.stage_names == ("extracting", "analyzing", "indexing", "painting")
    assert known.code_of("analyzing") == MOCK.stages[1].code
    with pytest.raises(KeyError):
        known.code_of("sculpting")


def test_load_names_its_variable_when_a_module_is_missing_or_declares_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="HEIMDEX_PIPELINES"):
        pipelines.load(["no.such.module"])
    for value in (None, 7, [1, 2], [MOCK, MOCK]):
        module = ModuleType("declares_nonsense")
        if value is not None:
            module.PIPELINES = value  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "declares_nonsense", module)
        with pytest.raises(SettingsError, match="HEIMDEX_PIPELINES"):
            pipelines.load(["declares_nonsense"])


def test_load_collects_what_the_modules_declare() -> None:
    known = pipelines.load(["heimdex_contracts.mock_process", "tests.support.pipelines.scripted"])
    assert known.types == ("mock_process", "scripted")
