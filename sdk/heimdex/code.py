"""Imports the function that a stage declares, and binds it; refuses what could not run as a stage.

The stage's worker does this when it starts, and so does `heimdex check`.
"""

import functools
import importlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, Final

from heimdex.binding import BoundFunction, Unbindable, bind
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.exception_text import describe
from heimdex_contracts.pipelines import Pipeline, Stage

#: The layers of decorators and partials that are looked behind.
_MAX_LAYERS: Final = 100
#: The length of the cause in the text of an error, which must stay one line.
_MAX_CAUSE_LENGTH: Final = 300


def load(pipeline: Pipeline, stage: Stage) -> BoundFunction:
    """Import the function of this stage, and bind its arguments.

    Raises SettingsError, one sentence, when that is not possible, and when a call of the function could not run it.
    """
    function = imported(stage.code)
    try:
        return bind(function, pipeline, stage)
    except Unbindable as error:
        raise SettingsError(f"The stage's code {stage.code!r} {error}.") from error


def imported(code: str) -> Any:
    """Import the function that `package.module:function` names.

    Raises SettingsError when that is not possible, and when a call of the function could not run it.
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
    return function


def _problem_of(function: Any) -> str | None:
    """Return why the function cannot be a stage, as the end of a sentence; None if it can."""
    if inspect.isclass(function):
        return "is a class, not a function: a call would only create an object"
    if not callable(function):
        return "is not a function"
    for layer in itertools.islice(_layers(function), _MAX_LAYERS):
        if inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer):
            return "is a generator function: a call would not run it; remove `yield`, and report with ctx.report"
    return None


def _layers(function: Any) -> Iterator[Any]:
    """Yield the function, and what its decorators and partials wrap."""
    while True:
        yield function
        yield getattr(type(function), "__call__", None)  # noqa: B004  # what runs when an object is called
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif callable(wrapped := inspect.getattr_static(function, "__wrapped__", None)):
            function = wrapped
        else:
            return
