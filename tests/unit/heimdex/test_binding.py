"""Which arguments of a stage's function are bound, to what, and what is refused when the worker starts."""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from heimdex import Context, Pipeline, Stage
from heimdex.attempt_state import AttemptState
from heimdex.binding import ArgumentRefused, Unbindable, bind
from heimdex_contracts.messages import NOTHING
from tests.support.histories import stage_run


class Video(msgspec.Struct):
    source: str
    language: str = "auto"


class Frames(msgspec.Struct):
    count: int


PIPELINE = Pipeline(
    "video",
    (
        Stage("probing", 1, "some:code", formerly=("looking-at",), output=Frames),
        Stage("cut-out", 1, "some:code"),
        Stage("mixing", 1, "some:code"),
        Stage("closing", 1, "some:code", formerly=("ending",)),
    ),
    params=Video,
)
BARE = Pipeline("bare", (Stage("mixing", 1, "some:code"),))

state = AttemptState(
    job_id="some-id",
    job_type="video",
    stage="mixing",
    attempt=1,
    expected_seconds=1,
    mock_time_scale=0,
    params=msgspec.Raw(b'{"source":"a.mp4"}'),
    finished=(stage_run("probing", msgspec.Raw(b'{"count":24}')), stage_run("cut-out", msgspec.Raw(b"[1]"))),
)
ctx = Context(state)


def with_finished(*stages: str) -> AttemptState:
    other = AttemptState(
        job_id="some-id", job_type="video", stage="mixing", attempt=1, expected_seconds=1, mock_time_scale=0
    )
    other.finished = tuple(stage_run(name, msgspec.Raw(b'{"count":1}')) for name in stages)
    other.params = state.params
    return other


def called(function: Any, given: AttemptState = state, stage: str = "mixing", pipeline: Pipeline = PIPELINE) -> Any:
    """Return what the function returns, called as a worker would."""
    arguments = bind(function, pipeline, pipeline.stage(stage)).arguments(Context(given), given)
    return function(*arguments.positional, **arguments.keywords)


def wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def keywords_only(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(ctx: Context, **kwargs: Any) -> Any:
        return function(ctx=ctx, **kwargs)

    return call


def everything(cut_out: Any, params: Video, ctx: Context, probing: Frames, speed: int = 3) -> Any:
    return params, probing, cut_out, isinstance(ctx, Context), speed


def positional(params: Video, speed: int = 3, ctx: Any = None, /, *, probing: Frames) -> Any:
    return params, probing, [1], isinstance(ctx, Context), speed


class Scaler:
    def method(self, cut_out: Any, params: Video, ctx: Context, probing: Frames, speed: int = 3) -> Any:
        return everything(cut_out, params, ctx, probing, speed)

    decorated = wrapping(method)
    __call__ = decorated


BOUND: dict[str, Any] = {
    "function": everything,
    "positional-only": positional,
    "decorated": wrapping(wrapping(everything)),
    "decorated with keywords": keywords_only(everything),
    "method": Scaler().method,
    "decorated method": Scaler().decorated,
    "object": Scaler(),
    "partial": functools.partial(everything, speed=3),
    "partial of a decorated function": functools.partial(wrapping(everything), speed=3),
    "decorated partial": wrapping(functools.partial(everything, speed=3)),
    "cached": functools.cache(lambda params, ctx, probing, cut_out: None),
}


@pytest.mark.parametrize("name", [name for name in BOUND if name != "cached"])
def test_arguments_bind_by_name_in_any_order(name: str) -> None:
    assert called(BOUND[name]) == (Video("a.mp4"), Frames(24), [1], True, 3)


def test_a_decorator_without_a_signature_of_its_own_is_looked_behind() -> None:
    assert bind(BOUND["cached"], PIPELINE, PIPELINE.stage("mixing")).bound_names == (
        "params",
        "ctx",
        "probing",
        "cut_out",
    )


def test_no_argument_is_required() -> None:
    assert called(lambda: 5) == 5
    assert called(lambda ctx: ctx.stage) == "mixing"
    assert called(lambda params: params.language) == "auto"
    assert called(lambda *, ctx: ctx.stage, pipeline=BARE) == "mixing"


def test_an_unannotated_wrapper_gets_the_context_by_its_position() -> None:
    assert called(lambda *args: args[0].stage) == "mixing"
    assert called(lambda *args, **kwargs: (args[0].stage, kwargs)) == ("mixing", {})
    assert called(lambda *args, speed=3: (args[0].stage, speed)) == ("mixing", 3)


def test_a_decorator_passes_no_more_than_its_function_takes() -> None:
    assert called(wrapping(lambda: 5)) == 5
    assert called(wrapping(lambda device="cpu": device)) == "cpu"
    assert called(wrapping(lambda *args: args[0].stage)) == "mixing"


def test_an_argument_that_a_partial_fixes_is_not_bound() -> None:
    assert called(functools.partial(lambda params, ctx: (params, ctx.stage), params="mine")) == ("mine", "mixing")
    assert called(functools.partial(lambda params, ctx: (params, ctx.stage), "mine")) == ("mine", "mixing")


@pytest.mark.parametrize("names", [("probing",), ("looking-at",)])
def test_an_output_binds_under_the_name_and_the_former_names_of_its_stage(names: tuple[str, ...]) -> None:
    given = with_finished(*names)
    assert called(lambda probing: probing, given) == Frames(1)
    assert called(lambda looking_at: looking_at, given) == Frames(1)


def test_a_stage_that_the_job_has_not_run_needs_a_default() -> None:
    given = with_finished("probing")
    assert called(lambda cut_out=None: cut_out, given) is None
    assert called(lambda cut_out=7, /: cut_out, given) == 7
    with pytest.raises(ArgumentRefused, match=r"'cut_out' cannot be bound: this job has not run the stage 'cut-out'"):
        called(lambda cut_out: cut_out, given)


def test_an_output_of_none_is_none_and_not_the_default() -> None:
    given = with_finished("cut-out")
    given.finished = (stage_run("cut-out", NOTHING),)
    assert called(lambda cut_out=7: cut_out, given) is None


def test_a_stage_that_ran_before_it_declared_an_output_needs_a_default() -> None:
    given = with_finished()
    given.finished = (stage_run("probing", NOTHING),)
    assert called(lambda probing=7: probing, given) == 7
    assert called(lambda probing=7, /: probing, given) == 7
    with pytest.raises(ArgumentRefused, match=r"'probing' cannot be bound: the output does not fit .* Frames"):
        called(lambda probing: probing, given)
    given.finished = (stage_run("probing", msgspec.Raw(b"[]")),)
    with pytest.raises(ArgumentRefused, match=r"'probing' cannot be bound"):
        called(lambda probing=7: probing, given)


def test_a_job_from_before_the_params_has_their_defaults_if_all_have_one() -> None:
    class Options(msgspec.Struct):
        language: str = "auto"

    pipeline = Pipeline("options", BARE.stages, params=Options)
    given = with_finished()
    given.params = NOTHING
    assert called(lambda params: params, given, pipeline=pipeline) == Options()
    with pytest.raises(ArgumentRefused, match="the job's params do not fit the type Video of the job type 'video'"):
        called(lambda params: params, given)


def test_what_a_deploy_has_changed_is_refused_by_name() -> None:
    given = with_finished("probing")
    given.finished = (stage_run("probing", msgspec.Raw(b'{"number":1}')),)
    with pytest.raises(ArgumentRefused, match=r"'probing' cannot be bound: the output does not fit .* Frames"):
        called(lambda probing: probing, given)


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown": (lambda ctx, device: None, "the argument 'device', .*; what can be bound is ctx, params, probing, cut_"),
    "misspelt stage": (lambda probin: None, r"\(did you mean 'probing'\?\)"),
    "misspelt context": (lambda ctxt: None, r"\(did you mean 'ctx'\?\)"),
    "itself": (lambda mixing: None, "it is the stage itself"),
    "later": (lambda closing: None, "that stage comes after 'mixing'"),
    "former name of a later one": (lambda ending: None, "that stage comes after 'mixing'"),
    "behind a decorator": (wrapping(lambda device: None), "the argument 'device'"),
    "positional-only": (lambda device, /: None, "the argument 'device'"),
    "keyword-only": (lambda *, device: None, "the argument 'device'"),
    "partial": (functools.partial(lambda ctx, device: None, None), "the argument 'device'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_cannot_be_bound_is_refused_and_named(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(Unbindable, match=words) as refused:
        bind(function, PIPELINE, PIPELINE.stage("mixing"))
    assert "at the stage 'mixing' of the job type 'video'" in str(refused.value)


def test_params_of_a_type_without_any_are_refused() -> None:
    with pytest.raises(Unbindable, match="the job type 'bare' declares no params; what can be bound is ctx, and"):
        bind(lambda params: None, BARE, BARE.stages[0])


@pytest.mark.parametrize("name", ["device", "mixing", "closing"])
def test_a_default_stays_where_nothing_is_bound(name: str) -> None:
    assert called(eval(f"lambda ctx, {name}=5: {name}")) == 5


def test_a_stage_of_the_context_alone_needs_no_data_of_the_job() -> None:
    stage = BARE.stages[0]
    assert bind(lambda ctx: None, BARE, stage).is_plain
    assert bind(lambda ctx, device=None: None, BARE, stage).is_plain
    assert not bind(lambda params: None, PIPELINE, PIPELINE.stage("mixing")).is_plain
    assert not bind(lambda ctx: None, PIPELINE, PIPELINE.stage("probing")).is_plain
