"""Job types as data, and the declarations that are refused."""

import math
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from heimdex_contracts import pipelines
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.mock_process import PIPELINES
from heimdex_contracts.pipelines import Pipeline, Stage

MOCK = PIPELINES[0]


def pipeline(*names: str, type: str = "made_up", seconds: float = 1) -> Pipeline:
    return Pipeline(type=type, stages=tuple(Stage(name, seconds, "some.module:run") for name in names))


def test_mock_process_is_extracting_analyzing_indexing_with_three_retries() -> None:
    assert (MOCK.type, MOCK.stage_names) == ("mock_process", ("extracting", "analyzing", "indexing"))
    assert [stage.expected_seconds for stage in MOCK.stages] == [2, 3, 1]
    assert MOCK.retry_backoff_seconds == (1, 2, 4)


def stage(**values: object) -> Stage:
    return Stage(**({"name": "a", "expected_seconds": 1, "code": "some.module:run"} | values))  # type: ignore[arg-type]


def declared(**values: object) -> Pipeline:
    return Pipeline(**({"type": "made_up", "stages": (stage(),)} | values))  # type: ignore[arg-type]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


class Names(StrEnum):
    A = "a"


class Number(IntEnum):
    FIVE = 5


NO_NAMES = (
    "",
    "Upper",
    "with space",
    "dot.ted",
    "st*r",
    "a>b",
    "1st",
    "x" * 65,
    "é",
    "a\n",
    "\ud800",
    5,
    None,
    b"a",
    ["a"],
)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_is_not_a_subject_token_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="a letter first"):
        stage(name=name)
    with pytest.raises(ValueError, match="a letter first"):
        declared(type=name)


@pytest.mark.parametrize(
    "name",
    [
        *("completed", "failed", "canceled", "later", "waiting", "deleted"),
        *("gateway", "status-store", "nats", "postgres"),
    ],
)
def test_a_stage_with_a_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name is reserved"):
        stage(name=name)


@pytest.mark.parametrize("name", ["import", "class", "async", "lambda", "ctx", "params"])
def test_a_stage_whose_name_cannot_be_an_argument_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be bound"):
        stage(name=name)


def test_a_pipeline_without_stages_or_with_one_twice_or_with_two_that_bind_alike_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        pipeline()
    with pytest.raises(ValueError, match="twice"):
        pipeline("a", "a")
    with pytest.raises(ValueError, match="'a-b' and 'a_b', which bind the same argument"):
        pipeline("a-b", "c", "a_b")


NO_SECONDS = (-1, -0.001, math.nan, math.inf, -math.inf, 1e300, 10**400, 365 * 86400 + 1, "5", b"5", True, False)
NO_SECONDS += (Decimal(5), Fraction(5), timedelta(seconds=5), (5,), [5], {}, 1j, Unprintable())  # type: ignore[assignment]


@pytest.mark.parametrize("seconds", [*NO_SECONDS, None], ids=lambda value: type(value).__name__)
def test_expected_seconds_that_are_no_seconds_are_refused(seconds: object) -> None:
    with pytest.raises(ValueError, match=r"the stage 'a' has expected_seconds=.*, but it must be a number from 0 to"):
        stage(expected_seconds=seconds)


@pytest.mark.parametrize("seconds", [*NO_SECONDS, 0, 0.0, -0.0], ids=lambda value: type(value).__name__)
def test_a_timeout_that_is_no_seconds_is_refused(seconds: object) -> None:
    with pytest.raises(ValueError, match=r"the stage 'a' has timeout_seconds=.*, but it must be None"):
        stage(timeout_seconds=seconds)


@pytest.mark.parametrize("seconds", [*NO_SECONDS, None], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("around", [lambda bad: (1, bad), lambda bad: [bad, 1]])
def test_a_delay_that_is_no_seconds_is_refused(around: Callable[[object], object], seconds: object) -> None:
    with pytest.raises(
        ValueError, match=r"the job type 'made_up' has retry_backoff_seconds=.*, but it must be a tuple"
    ):
        declared(retry_backoff_seconds=around(seconds))


@pytest.mark.parametrize(
    "backoff",
    [5, 5.0, "5,10", "", None, {5}, {5: 1}, {}, range(3), iter([1]), (delay for delay in (1, 2)), b"12", True],
    ids=lambda value: type(value).__name__,
)
def test_a_retry_policy_that_is_no_tuple_and_no_list_is_refused(backoff: object) -> None:
    with pytest.raises(ValueError, match=r"but it must be a tuple or list of numbers .* such as \(1, 2, 4\), \(5,\)"):
        declared(retry_backoff_seconds=backoff)


@pytest.mark.parametrize(
    "stages",
    [stage(), None, "a", {"a": stage()}, {stage()}, (one for one in [stage()]), ("a",), [stage(), None], [[stage()]]],
    ids=lambda value: type(value).__name__,
)
def test_stages_that_are_no_tuple_and_no_list_of_stages_are_refused(stages: object) -> None:
    with pytest.raises(ValueError, match=r"the job type 'made_up' has stages=.*, but it must be a tuple or list of"):
        declared(stages=stages)


@pytest.mark.parametrize(
    "code",
    [
        *("", ":", "module", "module:", ":run", "module.run", "a.b:c:d", "a..b:c", ".a:b", "a.:b", "a:b.c", "a:b()"),
        *("a b:c", "a:b c", " a:b", "a:b\n", "a/b.py:c", "a:<lambda>", "1a:b", None, 5, b"a:b", ("a", "b"), len),
    ],
)
def test_code_that_does_not_name_a_function_of_a_module_is_refused(code: object) -> None:
    with pytest.raises(ValueError, match=r"has code=.*, but it must be text of the form 'package.module:function'"):
        stage(code=code)


def test_a_refusal_is_one_line_of_bounded_length_whatever_the_value() -> None:
    for call in (
        lambda: stage(name="x\n" * 10_000),
        lambda: stage(expected_seconds=10**100_000),
        lambda: stage(code="\ud800" * 100),
        lambda: declared(stages=[stage()] * 1000 + [None]),
        lambda: declared(retry_backoff_seconds=(Unprintable(),)),
    ):
        with pytest.raises(ValueError, match="must be") as caught:
            call()
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        assert len(text.encode()) < 400


def test_lists_become_tuples_and_members_of_enums_plain_values() -> None:
    pipeline = Pipeline(
        type=Names.A,
        stages=[stage(name=Names.A, expected_seconds=Number.FIVE)],  # type: ignore[arg-type]
        retry_backoff_seconds=[0, 1.5, Number.FIVE, 365 * 86400],  # type: ignore[arg-type]
    )
    assert pipeline == declared(
        type="a", stages=(stage(expected_seconds=5),), retry_backoff_seconds=(0, 1.5, 5, 365 * 86400)
    )
    assert isinstance(pipeline.stages, tuple)
    assert isinstance(pipeline.retry_backoff_seconds, tuple)
    assert [type(value) for value in (pipeline.type, pipeline.stages[0].name, pipeline.stages[0].expected_seconds)] == [
        str,
        str,
        float,
    ]
    assert type(pipeline.retry_backoff_seconds[2]) is float
    assert declared(retry_backoff_seconds=()).retry_backoff_seconds == ()


def test_collect_refuses_a_type_declared_twice() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        pipelines.collect([MOCK, MOCK])


def test_two_pipelines_may_share_the_name_of_a_stage_each_with_its_own_function() -> None:
    analyzing = Stage("analyzing", 1, "some.module:analyze")
    shared = Pipeline(type="other", stages=(analyzing, Stage("painting", 1, "some.module:paint")))
    known = pipelines.collect([MOCK, shared])
    assert known.types == ("mock_process", "other")
    assert known.stage_names == ("extracting", "analyzing", "indexing", "painting")
    assert known.stages_named("analyzing") == ((MOCK, MOCK.stages[1]), (shared, analyzing))
    assert known.stages_named("painting") == ((shared, shared.stages[1]),)
    assert known.stages_named("sculpting") == ()


NO_PIPELINES = {
    "missing": "",
    "None": "PIPELINES = None",
    "a number": "PIPELINES = 7",
    "text": "PIPELINES = 'mock_process'",
    "empty": "PIPELINES = []",
    "a single one": "PIPELINES = GOOD",
    "a dict": "PIPELINES = {'good': GOOD}",
    "a set": "PIPELINES = {GOOD}",
    "a generator": "PIPELINES = (one for one in [GOOD])",
    "others within": "PIPELINES = [GOOD, 1]",
    "stages within": "PIPELINES = list(GOOD.stages)",
    "one twice": "PIPELINES = [GOOD, GOOD]",
    "no tuple": "PIPELINES = [Pipeline('good', (Stage('a', 1, 'm:f'),), retry_backoff_seconds=(5))]",
    "a missing argument": "PIPELINES = [Pipeline('good', (Stage('a', 1),))]",
    "an unknown argument": "PIPELINES = [Pipeline('good', (Stage('a', 1, 'm:f', timeout=3),))]",
    "a syntax error": "PIPELINES = (",
    "a missing import": "import no_such_module",
    "an error": "raise ValueError('many\\nlines')",
    "an error without text": "raise RuntimeError",
    "an error that cannot be printed": "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
    "an exit": "raise SystemExit",
    "an exit with a code": "raise SystemExit(0)",
    "an interrupt": "raise KeyboardInterrupt",
    "a cancellation": "import asyncio\nraise asyncio.CancelledError",
    "a base exception": "class Odd(BaseException): pass\nraise Odd('odd')",
    "a group": "raise BaseExceptionGroup('all', [KeyboardInterrupt()])",
    "a deep recursion": "def f(): f()\nf()",
    "an attribute that raises": "def __getattr__(name): raise KeyError(name)",
}
GOOD = """
from heimdex_contracts.pipelines import Pipeline, Stage
GOOD = Pipeline('good', (Stage('a', 1, 'm:f'),))
"""


@pytest.mark.parametrize("source", NO_PIPELINES.values(), ids=NO_PIPELINES)
def test_load_names_its_variable_when_a_module_declares_nonsense_or_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "declares_nonsense.py").write_text(GOOD + source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "declares_nonsense", raising=False)
    with pytest.raises(SettingsError, match=r"^The modules? .*of HEIMDEX_PIPELINES cannot be used: .*\w.*\.$"):
        pipelines.load(["declares_nonsense"])


@pytest.mark.parametrize(
    "name", ["no.such.module", "no_such_module", ".relative", "a/b.py", "heimdex_contracts.nothing"]
)
def test_load_names_its_variable_when_there_is_no_such_module(name: str) -> None:
    with pytest.raises(SettingsError, match="HEIMDEX_PIPELINES"):
        pipelines.load([name])


def test_load_explains_a_missing_module_and_not_one_that_this_module_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"No module named 'no_such_package' .*PYTHONPATH"):
        pipelines.load(["no_such_package.pipelines"])
    (tmp_path / "misses_another.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"No module named 'no_such_package'\.$"):
        pipelines.load(["misses_another"])


def test_load_collects_what_the_modules_declare() -> None:
    known = pipelines.load(["heimdex_contracts.mock_process", "tests.support.pipelines.scripted"])
    assert known.types == ("mock_process", "scripted")


class Inner(msgspec.Struct, frozen=True):
    """A struct of which a field's default does not fit."""

    width: Annotated[int, msgspec.Meta(ge=1)] = 0


class Holder(msgspec.Struct, frozen=True):
    """Has such a struct in a list."""

    boxes: list[Inner] = []


class Unhappy(msgspec.Struct, frozen=True):
    """The commonest mistake: an optional text that is not declared as such."""

    language: str = None  # type: ignore[assignment]


class Infinite(msgspec.Struct, frozen=True):
    """JSON has no infinity."""

    most: float = math.inf


class Lengthy(msgspec.Struct, frozen=True):
    """A default of another type in a union."""

    size: Literal["small", "large"] | int = "medium"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("params", "field"),
    [(Unhappy, "Unhappy.language"), (Holder, "Inner.width"), (Infinite, "Infinite.most"), (Lengthy, "Lengthy.size")],
)
def test_params_whose_default_does_not_fit_its_type_are_refused(params: type[msgspec.Struct], field: str) -> None:
    with pytest.raises(
        ValueError, match=rf"whose field {field} has the default .*, which its own type does not allow: "
    ):
        declared(params=params)


class Fitting(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Defaults of every kind that fit."""

    an_id: uuid.UUID = uuid.UUID(int=1)
    language: str | None = None
    unset: int | msgspec.UnsetType = msgspec.UNSET
    sizes: frozenset[int] = frozenset({1, 2})
    data: bytes = b"a"
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    price: Decimal = Decimal("1.5")
    wait: timedelta = timedelta(seconds=5)
    free: Any = None
    tags: list[str] = []
    table: dict[int, tuple[int, str]] = msgspec.field(default_factory=lambda: {1: (2, "a")})
    only: Literal["a", 1, None] = None


def test_params_whose_defaults_fit_are_taken() -> None:
    assert declared(params=Fitting).params is Fitting


@pytest.mark.parametrize("custom", [Unprintable, list[Unprintable], complex])
def test_a_class_that_msgspec_does_not_know_is_named(custom: Any) -> None:
    with pytest.raises(ValueError, match=r"of which msgspec does not know the fields: use a msgspec.Struct\)"):
        stage(output=custom)
    with pytest.raises(ValueError, match=r"of which msgspec does not know the fields: use a msgspec.Struct\)"):
        declared(params=msgspec.defstruct("Odd", [("field", custom)]))
