"""Binds the arguments of a stage's function by their names, as pytest binds fixtures, and its output to its type.

An argument is `params`, `ctx`, or an earlier stage of the pipeline, whose output it gets: `-` in the stage's name is
written as `_`, and its former names bind too. All are optional, and their order does not matter. Everything that
depends on the declarations only is computed once, when the worker starts.
"""

import difflib
import functools
import inspect
from collections.abc import Iterator
from inspect import Parameter
from typing import Any, Final, NamedTuple

import msgspec

from heimdex.attempt_state import AttemptState
from heimdex.context import Context
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.exception_text import text_of
from heimdex_contracts.outputs import OutputRefused, OutputType
from heimdex_contracts.pipelines import Pipeline, Stage, argument_name

_PARAMS: Final = "params"
_CTX: Final = "ctx"
#: The layers of decorators, partials and methods behind which the arguments are looked for.
_MAX_LAYERS: Final = 100
_NO_KEYWORDS: Final[dict[str, Any]] = {}
_MAX_REASON_LENGTH: Final = 500


class Unbindable(HeimdexError):
    """The arguments of a function cannot be bound. The text ends a sentence that begins with the function's name."""


class ArgumentRefused(HeimdexError):
    """An argument has no value in this job: its deploy changed the types, or the job has not run the stage."""


class Arguments(NamedTuple):
    """The arguments of one call."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]


class _Output(NamedTuple):
    """An earlier stage whose output is an argument: its name, its former names, and its type."""

    names: tuple[str, ...]
    type: OutputType


class _Argument(NamedTuple):
    """An argument that is bound. source: `params`, `ctx`, an earlier stage, or None for one that keeps its default."""

    name: str
    source: str | _Output | None
    default: Any
    is_positional: bool


class BoundFunction:
    """A stage's function, with what it takes and the type of what it returns.

    arguments: those that it is called with; None: the context, by its position.
    """

    def __init__(
        self,
        function: Any,
        pipeline: Pipeline | None = None,
        arguments: tuple[_Argument, ...] | None = None,
        output: Any = None,
    ) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(type(function), "__call__", None)  # noqa: B004
        )
        self._pipeline = pipeline
        self._arguments = arguments
        self._output = OutputType(output)
        takes_context_only = arguments is None or all(each.source in (_CTX, None) for each in arguments)
        #: Whether neither the declarations nor the job's data are needed for a call.
        self.is_plain = takes_context_only and output is None

    @property
    def bound_names(self) -> tuple[str, ...]:
        """The names of the arguments that are bound, for people."""
        if self._arguments is None:
            return (_CTX,)
        return tuple(each.name for each in self._arguments if each.source is not None)

    def arguments(self, ctx: Context, state: AttemptState) -> Arguments:
        """Return the arguments of a call. Raises ArgumentRefused for one that has no value in this job."""
        if self._arguments is None:
            return Arguments((ctx,), _NO_KEYWORDS)
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for each in self._arguments:
            value: Any
            if each.source == _CTX:
                value = ctx
            elif each.source == _PARAMS:
                value = self._params(state)
            elif isinstance(each.source, _Output):
                value = _output(each, each.source, state)
            else:
                value = each.default
            if each.is_positional:
                positional.append(value)
            elif value is not Parameter.empty:
                keywords[each.name] = value
        return Arguments(tuple(positional), keywords)

    def encoded(self, value: Any, state: AttemptState) -> msgspec.Raw:
        """Return what the function returned as JSON. Raises OutputRefused."""
        return self._output.encode(value, (run.output for run in state.finished))

    def _params(self, state: AttemptState) -> Any:
        assert self._pipeline is not None  # noqa: S101  # `bind` binds params of a pipeline only
        try:
            return self._pipeline.params_decoder.decode(state.params or b"{}")
        except Exception as error:  # a struct's own __post_init__ may raise anything
            declared = getattr(self._pipeline.params, "__name__", "")
            raise ArgumentRefused(
                f"the job's params do not fit the type {declared} of the job type {self._pipeline.type!r} any more:"
                f" {text_of(error, _MAX_REASON_LENGTH)}"
            ) from None


def _output(argument: _Argument, output: _Output, state: AttemptState) -> Any:
    for run in state.finished:
        if run.stage in output.names:
            try:
                return output.type.decode(run.output)
            except OutputRefused as error:
                if not run.output and argument.default is not Parameter.empty:
                    # The stage ran before it declared an output, or on a worker of a release before outputs.
                    return argument.default
                raise ArgumentRefused(f"the argument {argument.name!r} cannot be bound: {error}") from None
    if argument.default is Parameter.empty:
        raise ArgumentRefused(
            f"the argument {argument.name!r} cannot be bound: this job has not run the stage {output.names[0]!r} before"
            f" {state.stage!r}; give the argument a default"
        )
    return argument.default


def bind(function: Any, pipeline: Pipeline, stage: Stage) -> BoundFunction:
    """Bind the arguments of a stage's function. Raises Unbindable for one without a default that cannot be bound."""
    parameters = _parameters(function)
    if parameters is None:
        return BoundFunction(function, pipeline, None, stage.output)
    sources = _sources(pipeline, stage)
    arguments = []
    for each in parameters.named:
        source = sources.get(each.name)
        if source is None and each.default is Parameter.empty:
            raise Unbindable(_explained(each.name, pipeline, stage, tuple(sources)))
        is_positional = each.kind is Parameter.POSITIONAL_ONLY
        # By keyword, an argument that keeps its default is left out.
        default = Parameter.empty if source is None and not is_positional else each.default
        arguments.append(_Argument(each.name, source, default, is_positional))
    if parameters.takes_any and all(each.source is None for each in arguments):
        return BoundFunction(function, pipeline, None, stage.output)
    return BoundFunction(function, pipeline, tuple(arguments), stage.output)


def _sources(pipeline: Pipeline, stage: Stage) -> dict[str, str | _Output]:
    """Return what may be bound, by the argument's name."""
    sources: dict[str, str | _Output] = {_CTX: _CTX}
    if pipeline.params is not None:
        sources[_PARAMS] = _PARAMS
    earlier = pipeline.stages[: pipeline.stages.index(stage)]
    outputs = [(each, _Output(each.names, OutputType(each.output))) for each in earlier]
    for each, output in outputs:
        sources[argument_name(each.name)] = output
    for each, output in outputs:
        for name in each.formerly:
            sources.setdefault(argument_name(name), output)
    return sources


def _explained(name: str, pipeline: Pipeline, stage: Stage, bindable: tuple[str, ...]) -> str:
    """Return why this argument cannot be bound, as the end of a sentence."""
    later = pipeline.stages[pipeline.stages.index(stage) + 1 :]
    if name == _PARAMS:
        reason = f": the job type {pipeline.type!r} declares no params"
    elif name in map(argument_name, stage.names):
        reason = ": it is the stage itself, which has no output yet"
    elif any(name in map(argument_name, each.names) for each in later):
        reason = f": that stage comes after {stage.name!r}"
    else:
        reason = ""
        close = difflib.get_close_matches(name, bindable, 1)
        if close:
            reason = f" (did you mean {close[0]!r}?)"
    where = f"at the stage {stage.name!r} of the job type {pipeline.type!r}"
    known = f"what can be bound is {', '.join(bindable)}, and any other argument needs a default"
    return f"has the argument {name!r}, which cannot be bound {where}{reason}; {known}"


class _Parameters(NamedTuple):
    """The arguments that a function names. takes_any: it also takes any others by their position."""

    named: list[Parameter]
    takes_any: bool


def _parameters(function: Any, layer: int = 0) -> _Parameters | None:
    """Return what a function takes, also behind decorators that pass on any keywords; None if that is unknown."""
    if layer > _MAX_LAYERS:
        return None
    if isinstance(function, functools.partial):
        return _of_partial(function, layer)
    inner: _Parameters | None
    if inspect.ismethod(function):
        inner = _parameters(function.__func__, layer + 1)
        return inner and _without_first(inner, 1)
    call = None if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004
    if inspect.isfunction(call) and inspect.getattr_static(function, "__signature__", None) is None:
        inner = _parameters(call, layer + 1)
        return inner and _without_first(inner, 1)
    wrapped = inspect.getattr_static(function, "__wrapped__", None)
    try:
        # A decorator may add arguments: then the signature of what it wraps is not the one that is called.
        signature = inspect.signature(function, follow_wrapped=False)
    except Exception:  # a function in C may have no signature, and an object a __signature__ that raises
        return _parameters(wrapped, layer + 1) if callable(wrapped) else None
    own = list(_named(signature))
    kinds = {each.kind for each in signature.parameters.values()}
    takes_any = Parameter.VAR_POSITIONAL in kinds
    if Parameter.VAR_KEYWORD in kinds and callable(wrapped):
        inner = _parameters(wrapped, layer + 1)
        if inner is not None:
            names = {each.name for each in own}
            # What it takes by position goes to the function that it wraps.
            return _Parameters(own + [each for each in inner.named if each.name not in names], inner.takes_any)
    return _Parameters(own, takes_any)


def _named(signature: inspect.Signature) -> Iterator[Parameter]:
    for each in signature.parameters.values():
        if each.kind not in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
            yield each


def _of_partial(function: "functools.partial[Any]", layer: int) -> _Parameters | None:
    inner = _parameters(function.func, layer + 1)
    if inner is None:
        return None
    rest = _without_first(inner, len(function.args))
    return _Parameters([each for each in rest.named if each.name not in function.keywords], rest.takes_any)


def _without_first(parameters: _Parameters, count: int) -> _Parameters:
    """Return the parameters without the first ones that are passed by their position."""
    kept = []
    for each in parameters.named:
        if count and each.kind is not Parameter.KEYWORD_ONLY:
            count -= 1
        else:
            kept.append(each)
    return _Parameters(kept, parameters.takes_any)
