"""Job types as data: stages in order, expected durations, retry policy, time-out.

The gateway uses them to validate submissions, the worker to determine the stage that follows another, the status store
to watch the stages' queues. A new job type is a `Pipeline` in a module that HEIMDEX_PIPELINES names; `mock_process`
ships with the project. Every value is checked when it is declared, so that a mistake stops each process at its start
and does not surface in the middle of a job.
"""

import importlib
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from heimdex_contracts import param_types
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.exception_text import text_of
from heimdex_contracts.subjects import GATEWAY, RESERVED_TOKENS, STATUS_STORE

#: The longest back-off, time-out or expected duration: 365 days. NATS takes a delay as a number of nanoseconds in 64
#: bits (292 years), and redelivers at once, again and again, when it cannot read the delay.
MAX_SECONDS: Final = 365 * 24 * 3600
#: Names of the other processes of a deployment: a stage's process, service, log and consumer have the stage's name.
_PROCESSES: Final = frozenset({GATEWAY, STATUS_STORE, "nats", "postgres"})
#: Names of a stage function's other arguments: an earlier stage's output is bound by the stage's name.
_ARGUMENTS: Final = frozenset({"ctx", "params"})
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
#: Longer values are cut in an error.
_SHOWN_LENGTH: Final = 100
_REASON_LENGTH: Final = 500
#: What msgspec says of a class that is not its own, with advice that does not apply to a declaration.
_CUSTOM_TYPE: Final = re.compile(r"custom types.*\btype (.*) is not supported", re.DOTALL)


#: The type of a field beside one that is called `type`.
StructType = type[msgspec.Struct]


class InvalidDeclaration(ValueError):
    """A Stage or a Pipeline has a value that cannot be used. The text is a sentence that names the value."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline.

    name: 1 to 64 of a-z, 0-9, _ and -, a letter first; it is a token of subjects, and binds an argument (`-` as `_`).
    expected_seconds: the usual duration, 0 to MAX_SECONDS; the stage's weight in the job's progress.
    code: `package.module:function`; only the stage's worker imports it. Its arguments are bound by name.
    timeout_seconds: an attempt that runs longer fails with an error and is retried like any other. More than 0, at most
    MAX_SECONDS; None: no limit.
    formerly: a tuple or list of earlier names of this stage. Its worker also takes the jobs that are queued under them.
    output: the type of what the function returns: a msgspec.Struct or any other type that msgspec decodes from JSON;
    None: anything that JSON can hold.
    retry_backoff_seconds: as in Pipeline, for this stage; None: the pipeline's.

    Raises InvalidDeclaration for any other value.
    """

    name: str
    expected_seconds: float
    code: str
    timeout_seconds: float | None = None
    formerly: tuple[str, ...] = ()
    output: Any = None
    retry_backoff_seconds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _set(self, "name", _stage_name(self.name))
        where = f"the stage {self.name!r}"
        expected = _seconds(self.expected_seconds)
        if expected is None:
            raise _invalid(where, "expected_seconds", self.expected_seconds, f"a number from 0 to {MAX_SECONDS}")
        _set(self, "expected_seconds", expected)
        if not isinstance(self.code, str) or not _names_a_function(self.code):
            raise _invalid(where, "code", self.code, "text of the form 'package.module:function'")
        _set(self, "code", str.__str__(self.code))
        if self.timeout_seconds is not None:
            timeout = _seconds(self.timeout_seconds)
            if not timeout:
                expectation = f"None (no limit) or a number greater than 0, at most {MAX_SECONDS}"
                raise _invalid(where, "timeout_seconds", self.timeout_seconds, expectation)
            _set(self, "timeout_seconds", timeout)
        if not isinstance(self.formerly, (tuple, list)):
            expectation = "a tuple or list of stage names (a single one is written with a comma: ('name',))"
            raise _invalid(where, "formerly", self.formerly, expectation)
        _set(self, "formerly", tuple(_stage_name(name) for name in self.formerly))
        if self.output is not None and (reason := _not_json(self.output)):
            expectation = f"a type that msgspec decodes from JSON ({reason})"
            raise _invalid(where, "output", self.output, expectation)
        if self.retry_backoff_seconds is not None:
            _set(self, "retry_backoff_seconds", _delays(where, self.retry_backoff_seconds))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the stage, then its former names."""
        return (self.name, *self.formerly)


@dataclass(frozen=True)
class Pipeline:
    """A job type.

    type: 1 to 64 of a-z, 0-9, _ and -, a letter first.
    stages: a tuple or list of at least one Stage, in the order in which they run.
    retry_backoff_seconds: a tuple or list with one delay per retry, each 0 to MAX_SECONDS, so a stage has at most
    1 + len(...) attempts.
    params: the struct of the job's parameters, a subclass of msgspec.Struct; None: its jobs have none.

    Raises InvalidDeclaration for any other value, and for two stages whose names are equal but for `-` and `_`.
    """

    type: str
    stages: tuple[Stage, ...]
    retry_backoff_seconds: tuple[float, ...] = (1.0, 2.0, 4.0)
    params: StructType | None = None

    def __post_init__(self) -> None:
        _set(self, "type", _name("the job type", self.type))
        where = f"the job type {self.type!r}"
        if not isinstance(self.stages, (tuple, list)) or not all(isinstance(stage, Stage) for stage in self.stages):
            expectation = "a tuple or list of Stage objects (a single one is written with a comma: (Stage(...),))"
            raise _invalid(where, "stages", self.stages, expectation)
        _set(self, "stages", tuple(self.stages))
        if not self.stages:
            raise InvalidDeclaration(f"{where} needs at least one stage")
        if len(set(self.stage_names)) != len(self.stages):
            raise InvalidDeclaration(f"{where} declares a stage twice")
        every_name = [name for stage in self.stages for name in stage.names]
        for name in every_name:
            if every_name.count(name) > 1:
                raise InvalidDeclaration(f"{where} uses the name {name!r} twice: as a stage or in `formerly`")
        bound: dict[str, str] = {}
        for name in self.stage_names:
            if bound.setdefault(argument_name(name), name) != name:
                both = f"{bound[argument_name(name)]!r} and {name!r}"
                raise InvalidDeclaration(f"{where} has the stages {both}, which bind the same argument: rename one")
        _set(self, "retry_backoff_seconds", _delays(where, self.retry_backoff_seconds))
        if self.params is not None:
            _check_params(where, self.params)

    @cached_property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages, in the order in which they run."""
        return tuple(stage.name for stage in self.stages)

    @property
    def first_stage(self) -> str:
        """The name of the stage at which a new job starts."""
        return self.stages[0].name

    @cached_property
    def params_decoder(self) -> msgspec.json.Decoder[Any]:
        """Decodes the parameters of a job. Only for a pipeline with `params`."""
        return msgspec.json.Decoder(self.params)

    @cached_property
    def params_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the parameters, or None without `params`. It allows no unknown field of any object."""
        if self.params is None:
            return None
        schema = msgspec.json.schema(self.params)
        for definition in schema["$defs"].values():
            if "properties" in definition:
                definition["additionalProperties"] = False
        return schema

    def backoff_of(self, stage: str) -> tuple[float, ...]:
        """Return the retry policy of the stage of this name or former name. Raises KeyError."""
        own = self.stage(stage).retry_backoff_seconds
        return self.retry_backoff_seconds if own is None else own

    def stage(self, name: str) -> Stage:
        """Return the stage of this name or former name. Raises KeyError when the pipeline has no such stage."""
        for stage in self.stages:
            if name in stage.names:
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

    @cached_property
    def queue_names(self) -> tuple[str, ...]:
        """The names of all queues: those of the stages, then the former names, which may still hold jobs."""
        former = (name for entry in self.by_type.values() for stage in entry.stages for name in stage.formerly)
        return tuple(dict.fromkeys((*self.stage_names, *former)))

    def former_names(self, stage: str) -> tuple[str, ...]:
        """Return the former names of a stage in all pipelines, without duplicates."""
        entries = (each for entry in self.by_type.values() for each in entry.stages if each.name == stage)
        return tuple(dict.fromkeys(name for entry in entries for name in entry.formerly))

    def stages_named(self, name: str) -> tuple[tuple[Pipeline, Stage], ...]:
        """Return every stage of this name with its pipeline: job types may share a name, each with its own code."""
        return tuple((entry, stage) for entry in self.by_type.values() for stage in entry.stages if stage.name == name)


def collect(pipelines: Iterable[Pipeline]) -> Pipelines:
    """Index the pipelines by type.

    Raises InvalidDeclaration when there is none, when two have the same type, or when a former name is a stage's name
    or the former name of another stage: two workers would take jobs from one queue, each without the code of the other.
    """
    by_type: dict[str, Pipeline] = {}
    for pipeline in pipelines:
        if pipeline.type in by_type:
            raise InvalidDeclaration(f"the job type {pipeline.type!r} is declared twice")
        by_type[pipeline.type] = pipeline
    owner: dict[str, str] = {name: name for entry in by_type.values() for name in entry.stage_names}
    for entry in by_type.values():
        for stage in entry.stages:
            for name in stage.formerly:
                if owner.setdefault(name, stage.name) != stage.name:
                    raise InvalidDeclaration(
                        f"the name {name!r} in `formerly` of {stage.name!r} belongs to {owner[name]!r}"
                    )
    if not by_type:
        raise InvalidDeclaration("no job type is declared: PIPELINES is empty")
    return Pipelines(by_type)


def load(modules: Iterable[str]) -> Pipelines:
    """Collect `PIPELINES` (a tuple or list of Pipeline) from each of these modules.

    Raises SettingsError, one line that names HEIMDEX_PIPELINES, when a module cannot be imported or a declaration is
    invalid. A module may raise anything when it is imported, SystemExit and KeyboardInterrupt included.
    """
    pipelines: list[Pipeline] = []
    for name in modules:
        try:
            pipelines.extend(_declared_by(name))
        except BaseException as error:
            reason = _reason(name, error)
            raise SettingsError(f"The module {name!r} of HEIMDEX_PIPELINES cannot be used: {reason}.") from error
    try:
        return collect(pipelines)
    except InvalidDeclaration as error:
        raise SettingsError(f"The modules of HEIMDEX_PIPELINES cannot be used: {error}.") from error


def _declared_by(module: str) -> Iterable[Pipeline]:
    imported = importlib.import_module(module)
    if not hasattr(imported, "PIPELINES"):
        raise InvalidDeclaration("it has no attribute PIPELINES, a tuple or list of Pipeline objects")
    # A generator would be used up by the first of the readers of this module.
    if not isinstance(imported.PIPELINES, (tuple, list)):
        raise _invalid("it", "PIPELINES", imported.PIPELINES, "a tuple or list of Pipeline objects")
    for entry in imported.PIPELINES:
        if not isinstance(entry, Pipeline):
            raise InvalidDeclaration(f"its PIPELINES contains {_shown(entry)}, but must hold Pipeline objects only")
    return imported.PIPELINES


def _reason(module: str, error: BaseException) -> str:
    """Return what an error says, on one line, with its type where the text alone explains little."""
    text = " ".join(text_of(error).split())
    if not isinstance(error, InvalidDeclaration):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        text += " (the folder that contains it must be in PYTHONPATH)"
    return _cut(text, _REASON_LENGTH).removesuffix(".")


def _set(declared: Stage | Pipeline, field: str, value: Any) -> None:
    object.__setattr__(declared, field, value)  # the class is frozen


def _invalid(where: str, field: str, value: object, expectation: str) -> InvalidDeclaration:
    return InvalidDeclaration(f"{where} has {field}={_shown(value)}, but it must be {expectation}")


def _shown(value: object) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an object's own __repr__ may raise anything, and an integer may be too long for text
        text = f"<{type(value).__name__}>"
    return _cut(text, _SHOWN_LENGTH)


def _cut(text: str, length: int) -> str:
    text = text.encode(errors="backslashreplace").decode()  # a lone surrogate can be neither printed nor logged
    return text if len(text) <= length else f"{text[:length]}..."


def _seconds(value: object) -> float | None:
    """Return the value as a plain number, or None if it is not a number from 0 to MAX_SECONDS."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
        return None
    # Subclasses (numpy.float64, members of an IntEnum) cannot be encoded in a message.
    return value if type(value) in {int, float} else float(value)


def _delays(where: str, backoff: object) -> tuple[float, ...]:
    delays = [_seconds(delay) for delay in backoff] if isinstance(backoff, (tuple, list)) else [None]
    if None in delays:
        expectation = f"a tuple or list of numbers from 0 to {MAX_SECONDS}, such as (1, 2, 4), (5,) or ()"
        raise _invalid(where, "retry_backoff_seconds", backoff, expectation)
    return tuple(delay for delay in delays if delay is not None)


def _check_params(where: str, params: object) -> None:
    if not isinstance(params, type) or not issubclass(params, msgspec.Struct):
        raise _invalid(where, "params", params, "a subclass of msgspec.Struct")
    if params.__struct_config__.array_like:
        raise _invalid(where, "params", params, "a struct that is an object in JSON: remove array_like")
    if reason := _not_json(params):
        raise _invalid(where, "params", params, f"a struct that msgspec decodes from JSON ({reason})")
    for struct in param_types.structs_in(params):
        for field in msgspec.structs.fields(struct):
            # Otherwise every caller who leaves the field out would be refused.
            if field.default is not msgspec.NODEFAULT and (reason := _misfit(field.default, field.type)):
                name = f"{struct.__name__}.{field.name}"
                raise InvalidDeclaration(
                    f"{where} has params whose field {name} has the default {_shown(field.default)}, which its own "
                    f"type does not allow: {reason}"
                )


def _misfit(default: Any, declared: Any) -> str | None:
    """Return why this default could not be sent as a value of its field's type, or None if it could."""
    if default is msgspec.UNSET:
        return None
    try:
        msgspec.json.decode(msgspec.json.encode(default), type=declared)
    except Exception as error:  # a struct's own __post_init__ may raise anything
        return _cut(" ".join(str(error).split()), _SHOWN_LENGTH * 2)
    return None


def _not_json(declared: Any) -> str | None:
    """Return why values of this type cannot be decoded from JSON, or None if they can."""
    try:
        msgspec.json.Decoder(declared)
        msgspec.json.schema(declared)
    except Exception as error:  # an annotation may name anything
        if unknown := _CUSTOM_TYPE.search(str(error)):
            return f"it has {unknown[1]}, of which msgspec does not know the fields: use a msgspec.Struct"
        return _cut(" ".join(f"{type(error).__name__}: {error}".split()), _SHOWN_LENGTH * 2)
    return None


def _name(what: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidDeclaration(f"{what} {_shown(value)} must be text: 1 to 64 of a-z, 0-9, _ and -, a letter first")
    return str.__str__(value)  # a plain string also for a member of a StrEnum


def _stage_name(value: object) -> str:
    name = _name("the stage name", value)
    if name in RESERVED_TOKENS | _PROCESSES:
        raise InvalidDeclaration(f"a stage cannot be named {name!r}: the name is reserved")
    if argument_name(name) in _ARGUMENTS or keyword.iskeyword(argument_name(name)):
        reason = "an argument of this name cannot be bound to its output"
        raise InvalidDeclaration(f"a stage cannot be named {name!r}: {reason}")
    return name


def argument_name(stage: str) -> str:
    """Return the name of the argument to which a later stage's function binds this stage's output."""
    return stage.replace("-", "_")


def _names_a_function(code: str) -> bool:
    module, _, function = code.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))
