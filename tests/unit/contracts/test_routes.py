"""The route of a job: which stage follows another, and how far the job is, also for stages that nobody knows here."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts.mock_process import PIPELINES
from heimdex_contracts.pipelines import Pipeline, Stage
from heimdex_contracts.routes import progress_along, route_of, stage_after
from tests.support.histories import due

MOCK = PIPELINES[0]


def pipeline(**seconds: float) -> Pipeline:
    return Pipeline("made_up", tuple(Stage(name, each, f"some.module:{name}") for name, each in seconds.items()))


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
    assert progress_along(MOCK.stage_names, MOCK, stage, fraction) == percent


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.sets(st.integers(0, 5)), st.floats(0, 1), st.floats(0, 1)
)
def test_progress_is_0_to_99_and_rises_along_the_route_whatever_is_known(
    seconds: list[float], known: set[int], one: float, other: float
) -> None:
    route = [f"s{index}" for index in range(len(seconds))]
    stages = {name: seconds[index] for index, name in enumerate(route) if index in known}
    declared = pipeline(**stages) if stages else None
    points = [progress_along(route, declared, name, at) for name in route for at in sorted([one, other])]
    assert points == sorted(points)
    assert all(0 <= point <= 99 for point in points)


def test_progress_weighs_all_stages_equally_when_none_has_expected_seconds() -> None:
    assert [progress_along(("a", "b"), pipeline(a=0, b=0), name) for name in ("a", "b")] == [0, 50]


def test_an_unknown_stage_weighs_the_mean_of_the_known_ones() -> None:
    route = ("a", "gone", "b")
    assert [progress_along(route, pipeline(a=1, b=3), name) for name in route] == [0, 16, 50]
    assert [progress_along(route, None, name) for name in route] == [0, 33, 66]
    assert progress_along(route, None, "elsewhere", 0.5) == 0


def test_the_route_names_the_next_stage_not_the_order_of_any_pipeline() -> None:
    route = ("indexing", "extracting")
    assert [stage_after(route, name) for name in route] == ["extracting", None]
    with pytest.raises(ValueError, match="not in"):
        stage_after(route, "analyzing")


def test_a_message_of_a_release_without_routes_has_the_route_of_its_pipeline() -> None:
    job = due()
    assert route_of(msgspec.structs.replace(job, route=()), MOCK) == MOCK.stage_names
    assert route_of(msgspec.structs.replace(job, route=()), None) == ()
    assert route_of(msgspec.structs.replace(job, route=("a", "b")), MOCK) == ("a", "b")
