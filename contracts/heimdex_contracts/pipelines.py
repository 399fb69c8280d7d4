"""Job types as data: stages in order, expected durations, retry policy, time-out.

The gateway uses them to validate submissions, the worker to determine the stage that follows another. No other service
needs them. A new job type is a `Pipeline` in a module that HEIMDEX_PIPELINES names; `mock_process` ships with the
project.
"""

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from heimdex_contracts.errors import SettingsError
from heimdex_contracts.subjects import RESERVED_TOKENS, STATUS_STORE

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline.

    expected_seconds: the usual duration; the stage's weight in the job's progress.
    code: `package.module:function`, a function that takes a `StageContext`; only the stage's worker imports it.
    timeout_seconds: an attempt that runs longer fails with an error and is retried like any other; None: no limit.
    """

    name: str
    expected_seconds: float
    code: str
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Pipeline:
    """A job type. `retry_backoff_seconds` has one delay per retry, so a stage has at most 1 + len(...) attempts."""

    type: str
    stages: tuple[Stage, ...]
    retry_backoff_seconds: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.type):
            raise ValueError(f"the job type {self.type!r} must be 1 to 64 of a-z, 0-9, _ and -, a letter first")
        if not self.stages:
            raise ValueError(f"the job type {self.type!r} needs at least one stage")
        for name in self.stage_names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the stage {name!r} must be 1 to 64 of a-z, 0-9, _ and -, a letter first")
            if name in RESERVED_TOKENS or name == STATUS_STORE:
                raise ValueError(f"a stage cannot be named {name!r}: the name is reserved")
        if len(set(self.stage_names)) != len(self.stages):
            raise ValueError(f"the job type {self.type!r} declares a stage twice")
        if any(stage.expected_seconds < 0 for stage in self.stages):
            raise ValueError(f"the job type {self.type!r} has a stage with negative expected_seconds")

    @cached_property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages, in the order in which they run."""
        return tuple(stage.name for stage in self.stages)

    @property
    def first_stage(self) -> str:
        """The name of the stage at which a new job starts."""
        return self.stages[0].name

    def stage(self, name: str) -> Stage:
        """Return the stage of this name. Raises KeyError when the pipeline has no such stage."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)


@dataclass(frozen=True)
class Pipelines:
    """The pipelines of this deployment, by job type."""

    by_type: dict[str, Pipeline]

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The names of the job types, sorted, for messages to people."""
        return tuple(sorted(self.by_type))

    @cached_property
    def stage_names(self) -> tuple[str, ...]:
        """The names of all stages of all pipelines, without duplicates, in order of first appearance."""
        return tuple(dict.fromkeys(name for entry in self.by_type.values() for name in entry.stage_names))

    def code_of(self, stage: str) -> str:
        """Return the `package.module:function` of a stage. Raises KeyError when no pipeline has the stage."""
        for pipeline in self.by_type.values():
            if stage in pipeline.stage_names:
                return pipeline.stage(stage).code
        raise KeyError(stage)


def collect(pipelines: Iterable[Pipeline]) -> Pipelines:
    """Index the pipelines by type.

    Raises ValueError when two pipelines have the same type, or when one stage name has two different functions.
    """
    by_type: dict[str, Pipeline] = {}
    code: dict[str, str] = {}
    for pipeline in pipelines:
        if pipeline.type in by_type:
            raise ValueError(f"the job type {pipeline.type!r} is declared twice")
        by_type[pipeline.type] = pipeline
        for stage in pipeline.stages:
            if code.setdefault(stage.name, stage.code) != stage.code:
                raise ValueError(f"the stage {stage.name!r} is declared with two different functions")
    return Pipelines(by_type)


def load(modules: Iterable[str]) -> Pipelines:
    """Collect `PIPELINES` (an iterable of Pipeline) from each of these modules.

    Raises SettingsError, which names HEIMDEX_PIPELINES, when a module cannot be imported or a declaration is invalid.
    """
    pipelines: list[Pipeline] = []
    for name in modules:
        try:
            declared = list(importlib.import_module(name).PIPELINES)
            if not all(isinstance(entry, Pipeline) for entry in declared):
                raise TypeError("its PIPELINES must hold Pipeline objects only")
            pipelines.extend(declared)
        except Exception as error:
            raise SettingsError(f"HEIMDEX_PIPELINES names {name!r}, which cannot be used: {error}") from error
    try:
        return collect(pipelines)
    except ValueError as error:
        raise SettingsError(f"HEIMDEX_PIPELINES cannot be used: {error}") from error
