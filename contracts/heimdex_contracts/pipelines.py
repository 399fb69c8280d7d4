"""Job types as data: stages in order, expected seconds, retry policy, time-out.

The gateway learns from here what it may accept, the worker what follows a stage, and nobody else needs to know.
A new job type is a `Pipeline` in a module named by HEIMDEX_PIPELINES; `mock_process` is the one that ships.
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

    expected_seconds: how long it usually takes; weighs the job's progress.
    code: `package.module:function`, a plain function of a context, imported by the stage's worker only.
    timeout_seconds: an attempt that runs longer ends in an error like another; None: no limit.
    """

    name: str
    expected_seconds: float
    code: str
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Pipeline:
    """A job type. `retry_backoff_seconds`: one pause a retry, so a stage is tried 1 + len(...) times."""

    type: str
    stages: tuple[Stage, ...]
    retry_backoff_seconds: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.type):
            raise ValueError(f"the job type {self.type!r} must be made of a-z, 0-9, _ and -")
        if not self.stages:
            raise ValueError(f"the job type {self.type!r} needs at least one stage")
        for name in self.stage_names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the stage {name!r} must be made of a-z, 0-9, _ and -")
            if name in RESERVED_TOKENS or name == STATUS_STORE:
                raise ValueError(f"a stage cannot be called {name!r}: the name has a meaning of its own")
        if len(set(self.stage_names)) != len(self.stages):
            raise ValueError(f"the job type {self.type!r} names a stage twice")
        if any(stage.expected_seconds < 0 for stage in self.stages):
            raise ValueError(f"the job type {self.type!r} expects a stage to take less than no time")

    @cached_property
    def stage_names(self) -> tuple[str, ...]:
        """In the order in which they run."""
        return tuple(stage.name for stage in self.stages)

    @property
    def first_stage(self) -> str:
        """Where a new job starts."""
        return self.stages[0].name

    def stage(self, name: str) -> Stage:
        """Raises KeyError when the pipeline has no such stage."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def stage_after(self, name: str) -> str | None:
        """The next stage's name, or None after the last. Raises KeyError for a stage that is none of ours."""
        names = self.stage_names
        if name not in names:
            raise KeyError(name)
        position = names.index(name) + 1
        return names[position] if position < len(names) else None

    def progress(self, stage: str, fraction: float = 0.0) -> int:
        """Percent of the whole job when `fraction` (0..1) of this stage is done: 0..99.

        100 is kept for a completed job. Stages weigh by their expected seconds, or alike where none expects any.
        """
        weights = [entry.expected_seconds for entry in self.stages]
        if sum(weights) <= 0:
            weights = [1.0] * len(weights)
        position = self.stage_names.index(stage)
        done = sum(weights[:position]) + weights[position] * min(1.0, max(0.0, fraction))
        return min(99, int(100 * done / sum(weights)))


@dataclass(frozen=True)
class Pipelines:
    """The job types that this deployment knows, by type."""

    by_type: dict[str, Pipeline]

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Sorted, for messages to people."""
        return tuple(sorted(self.by_type))

    @cached_property
    def stage_names(self) -> tuple[str, ...]:
        """Every stage of every pipeline, once each, in order of first appearance."""
        return tuple(dict.fromkeys(name for entry in self.by_type.values() for name in entry.stage_names))

    def code_of(self, stage: str) -> str:
        """Where a stage's function is. Raises KeyError when no pipeline has the stage."""
        for pipeline in self.by_type.values():
            if stage in pipeline.stage_names:
                return pipeline.stage(stage).code
        raise KeyError(stage)


def collect(pipelines: Iterable[Pipeline]) -> Pipelines:
    """Raises ValueError for two pipelines of one type, or one stage name with two different functions."""
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

    Raises SettingsError, naming HEIMDEX_PIPELINES, when a module cannot be imported or declares nonsense.
    """
    found: list[Pipeline] = []
    for name in modules:
        try:
            declared = list(importlib.import_module(name).PIPELINES)
            if not all(isinstance(entry, Pipeline) for entry in declared):
                raise TypeError("its PIPELINES must hold Pipeline objects only")
            found.extend(declared)
        except Exception as error:
            raise SettingsError(f"HEIMDEX_PIPELINES names {name!r}, which cannot be used: {error}") from error
    try:
        return collect(found)
    except ValueError as error:
        raise SettingsError(f"HEIMDEX_PIPELINES cannot be used: {error}") from error
