"""What can be a stage's function, and what the worker refuses at its start. See also `test_binding`."""

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from heimdex import Context, Pipeline, Stage, code
from heimdex_contracts.errors import SettingsError


def blocking(ctx: Context) -> None: ...


async def on_the_loop(ctx: Context) -> None: ...


def generator(ctx: Context) -> Iterator[int]:
    yield 1


async def async_generator(ctx: Context) -> AsyncIterator[int]:
    yield 1


def two_arguments(ctx: Context, device: str) -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def adds_an_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(ctx: Context) -> Any:
        return function(ctx, "cuda")

    return call


class Scaler:
    def __init__(self, *_: Any) -> None: ...

    def method(self, ctx: Context) -> None: ...

    def yielding(self, ctx: Context) -> Iterator[int]:
        yield 1

    def __call__(self, ctx: Context) -> None: ...


class Yielding:
    async def __call__(self, ctx: Context) -> AsyncIterator[int]:
        yield 1


class WithoutArguments:
    def __call__(self) -> None: ...


class Odd:
    """Callable, with a signature that raises."""

    def __call__(self, *_: Any) -> None: ...

    @property
    def __signature__(self) -> Any:
        raise RuntimeError("no signature")


def in_a_circle() -> Callable[..., Any]:
    def call(ctx: Context) -> None: ...

    call.__wrapped__ = call  # type: ignore[attr-defined]
    return call


GOOD: dict[str, Any] = {
    "blocking": blocking,
    "async": on_the_loop,
    "partial": functools.partial(two_arguments, device="cuda"),
    "decorated": decorated(blocking),
    "decorator that adds an argument": adds_an_argument(two_arguments),
    "method": Scaler().method,
    "callable object": Scaler(),
    "any arguments": lambda *args, **kwargs: None,
    "function in C": print,
    "odd": Odd(),
    "decorated in a circle": in_a_circle(),
    "no argument": lambda: None,
    "named argument": lambda *, ctx: None,
    "object without arguments": WithoutArguments(),
    "partial that binds all": functools.partial(blocking, None),
}
BAD: dict[str, tuple[Any, str]] = {
    "generator": (generator, "generator function"),
    "async generator": (async_generator, "generator function"),
    "partial of a generator": (functools.partial(functools.partial(generator)), "generator function"),
    "decorated generator": (decorated(decorated(generator)), "generator function"),
    "context manager": (contextlib.contextmanager(generator), "generator function"),
    "async context manager": (contextlib.asynccontextmanager(async_generator), "generator function"),
    "generator method": (Scaler().yielding, "generator function"),
    "object that yields": (Yielding(), "generator function"),
    "partial of an object that yields": (functools.partial(Yielding()), "generator function"),
    "class": (Scaler, "is a class"),
    "exception": (ValueError, "is a class"),
    "number": (42, "not a function"),
    "none": (None, "not a function"),
    "two arguments": (two_arguments, "the argument 'device'"),
}


def load(text: str) -> Any:
    """Return the function of a stage with this code, in a pipeline without params."""
    pipeline = Pipeline("some", (Stage("first", 1, text),))
    return code.load(pipeline, pipeline.stages[0]).function


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("made_up_stages")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_load_returns_the_function() -> None:
    from heimdex_stage_worker.stages import analyzing

    assert load("heimdex_stage_worker.stages.analyzing:run") is analyzing.run


@pytest.mark.parametrize("name", GOOD)
def test_load_takes_what_can_be_called(module: ModuleType, name: str) -> None:
    module.run = GOOD[name]  # type: ignore[attr-defined]
    assert load("made_up_stages:run") is GOOD[name]


@pytest.mark.parametrize("name", BAD)
def test_load_refuses_what_would_not_run_in_one_sentence(module: ModuleType, name: str) -> None:
    module.run, words = BAD[name]  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match=words) as refused:
        load("made_up_stages:run")
    text = str(refused.value)
    assert text.startswith("The stage's code 'made_up_stages:run' ")
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    "text", ["no.such.module:run", "heimdex_stage_worker.stages.analyzing:gone", "json:__name__", "json", "", ":run"]
)
def test_load_refuses_code_that_is_not_a_function(text: str) -> None:
    with pytest.raises(SettingsError):
        code.imported(text)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not telling")


@pytest.mark.parametrize("error", [SystemExit(0), Unspeakable(), ValueError("two\nlines"), ValueError("x" * 10**6)])
def test_a_module_that_raises_while_it_is_imported_is_refused_in_one_line(
    module: ModuleType, error: BaseException
) -> None:
    def raise_it(_: str) -> None:
        raise error

    module.__getattr__ = raise_it  # type: ignore[method-assign]
    with pytest.raises(SettingsError, match="cannot be imported") as refused:
        load("made_up_stages:run")
    assert type(error).__name__ in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
