"""Job types as data: what follows what, how far a job is, and declarations that make no sense."""

import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("stage", "fraction", "percent"),
    [
        ("extracting", 0, 0),
        ("extracting", 0.5, 16),
        ("analyzing", 0, 33),
        ("analyzing", 0.25, 45),
        ("indexing", 0, 83),
        ("indexing", 1, 99),
        ("extracting", -1, 0),
        ("extracting", 7, 33),
    ],
)
def test_progress_weighs_the_stages_by_their_expected_seconds(stage: str, fraction: float, percent: int) -> None:
    assert MOCK.progress(stage, fraction) == percent


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_progress_is_0_to_99_and_rises_along_the_pipeline(seconds: list[float], one: float, other: float) -> None:
    stages = tuple(Stage(f"s{index}", each, "some.module:run") for index, each in enumerate(seconds))
    made = Pipeline(type="made_up", stages=stages)
    points = [made.progress(name, at) for name in made.stage_names for at in sorted([one, other])]
    assert points == sorted(points)
    assert all(0 <= point <= 99 for point in points)


def test_progress_weighs_all_stages_alike_when_none_expects_to_take_time() -> None:
    assert [pipeline("a", "b", seconds=0).progress(name) for name in ("a", "b")] == [0, 50]


def test_stage_after_is_the_next_one_and_none_after_the_last() -> None:
    assert [MOCK.stage_after(name) for name in MOCK.stage_names] == ["analyzing", "indexing", None]
    with pytest.raises(KeyError):
        MOCK.stage_after("painting")


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
