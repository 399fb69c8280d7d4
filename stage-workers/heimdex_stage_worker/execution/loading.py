"""Imports a stage's function, and refuses what could not run as one: the worker then ends at its start."""

import functools
import importlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, Final, cast

from heimdex.context import StageFunction
from heimdex_contracts.errors import SettingsError
from heimdex_stage_worker.execution.failures import describe

#: The layers of decorators and partials that are looked behind.
_MAX_LAYERS: Final = 100
#: The length of the cause in the text of an error, which must stay one line.
_MAX_CAUSE_LENGTH: Final = 300


def load_stage(code: str) -> StageFunction:
    """Import the function that `package.module:function` names.

    Raises SettingsError when that is not possible, and when a call of the function with a context could not run it.
    """
    module, _, name = code.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except BaseException as error:  # a module may raise anything, and may exit
        cause = " ".join(describe(error, _MAX_CAUSE_LENGTH).split())
        raise SettingsError(f"The stage's code {code!r} cannot be imported: {cause}.") from error
    problem = _problem_of(function)
    if problem:
        raise SettingsError(f"The stage's code {code!r} {problem}.")
    return cast("StageFunction", function)


def is_async(function: Any) -> bool:
    """Return whether a call of the function returns a coroutine, so that it runs on the event loop."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_call_of(function))


def _problem_of(function: Any) -> str | None:
    """Return why the function cannot be a stage, as the end of a sentence; None if it can."""
    if inspect.isclass(function):
        return "is a class, not a function: a call would only create an object"
    if not callable(function):
        return "is not a function"
    for layer in itertools.islice(_layers(function), _MAX_LAYERS):
        if inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer):
            return "is a generator function: a call would not run it; remove `yield`, and report with ctx.report"
    try:
        # A decorator may add arguments: then the signature of what it wraps is not the one that is called.
        signature = inspect.signature(function, follow_wrapped=False)
    except Exception:
        return None  # a function in C may have no signature
    try:
        signature.bind(None)
    except TypeError:
        return "cannot be called with one argument, the context: it must be a function like `def stage(ctx)`"
    return None


def _layers(function: Any) -> Iterator[Any]:
    """Yield the function, and what its decorators and partials wrap."""
    while True:
        yield function
        yield _call_of(function)
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif callable(wrapped := inspect.getattr_static(function, "__wrapped__", None)):
            function = wrapped
        else:
            return


def _call_of(function: Any) -> Any:
    """Return the method that runs when an object of a class of its author is called."""
    return getattr(type(function), "__call__", None)  # noqa: B004
