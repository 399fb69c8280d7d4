"""Describes an exception of a stage, whatever it is: a short text, its traceback, and whether a retry can help.

An exception is other people's code: its class name may have megabytes, its `__str__` may raise, its cause may be
itself. The description is always bounded, can always be stored, and never raises. `traceback.TracebackException` is
not used: it calls such code unguarded, and follows a chain of any length.
"""

import asyncio
import itertools
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType, TracebackType
from typing import Any, Final

from heimdex import PermanentError, RetryAfter
from heimdex_contracts.exception_text import MAX_LENGTH, MAX_NAME_LENGTH, clean, describe, name_of, text_of
from heimdex_contracts.pipelines import MAX_SECONDS
from heimdex_contracts.settlement import Errored

#: The maximum size of a traceback, in bytes of UTF-8. Of a longer one, the end is kept.
MAX_TRACEBACK_BYTES: Final = 4096
#: The first line of a traceback whose beginning was cut.
CUT: Final = "[the beginning of this traceback was cut]\n"

#: What one exception, one line or one name may take of a traceback, so that a long text leaves room for the frames.
_MAX_TEXT_LENGTH: Final = 1000
_MAX_LINE_LENGTH: Final = 300
#: The innermost frames that are shown of each exception. More do not fit into a traceback of 4 KiB.
_MAX_FRAMES: Final = 60
#: The exceptions of a chain or a group that are shown, and the depth of groups in groups.
_MAX_EXCEPTIONS: Final = 15
_MAX_DEPTH: Final = 5
#: The coroutines that are followed from one to the one that it awaits.
_MAX_SUSPENDED: Final = 1000
#: The exceptions that one traceback shows.
_MAX_SHOWN: Final = 100
#: The exceptions of groups among which a PermanentError or a RetryAfter is looked for.
_MAX_LEAVES: Final = 10_000

_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"
_STACK: Final = "Stack at that time (most recent call last):\n"

Frames = Iterable[tuple[FrameType, int]]


def errored(error: BaseException, own: str = "") -> Errored:
    """Describe the exception with which an attempt failed. Never raises.

    own: the file of the caller, whose frames are left out at the top of the traceback.
    """
    leaves = list(itertools.islice(_leaves(error), _MAX_LEAVES))
    permanent = next((leaf for leaf in leaves if issubclass(type(leaf), PermanentError)), None)
    asked = [seconds for leaf in leaves if (seconds := _seconds_of(leaf)) is not None]
    if permanent is not None:
        sentence = text_of(permanent) or name_of(permanent)
    elif len(leaves) == 1 and leaves[0] is error:
        sentence = text_of(error) if asked else describe(error)
    else:
        count = "1 error" if len(leaves) == 1 else f"{len(leaves)} errors"
        shown = "; ".join(describe(leaf, MAX_NAME_LENGTH) for leaf in leaves[:_MAX_EXCEPTIONS])
        sentence = f"{count}: {shown}{'; ...' if len(leaves) > _MAX_EXCEPTIONS else ''}"
    return Errored(
        sentence[:MAX_LENGTH],
        permanent is not None,
        traceback=traceback_of(error, own),
        # Of several, every one asked for a delay at least as long as its own.
        retry_after_seconds=max(asked) if asked and permanent is None else None,
    )


def traceback_of(error: BaseException, own: str = "") -> str | None:
    """Return the end of the exception's traceback, with causes, notes and groups. Never raises."""
    try:
        return _end_of("".join(_chain(error, own, 0, iter(range(_MAX_SHOWN)))))
    except BaseException:  # no memory left, or a module whose __loader__ raises
        return None


def stack_of_thread(ident: int, own: str = "") -> str | None:
    """Return where a thread is, in the form of a traceback, from the caller's file `own` on. Never raises."""
    frame = sys._current_frames().get(ident)
    inner = itertools.takewhile(lambda entry: entry[0].f_code.co_filename != own, traceback.walk_stack(frame))
    return _stack(reversed(list(itertools.islice(inner, _MAX_FRAMES)))) if frame else None


def stack_of_task(task: asyncio.Task[Any], own: str = "") -> str | None:
    """Return where a suspended task is, in the form of a traceback. Never raises. own: as in `errored`."""
    return _stack(_without_own(_suspended(task.get_coro()), own))


def _suspended(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a suspended coroutine and of what it awaits. `Task.get_stack` has the first one only."""
    for _ in range(_MAX_SUSPENDED):
        match awaited:
            case CoroutineType():
                frame, awaited = awaited.cr_frame, awaited.cr_await
            case AsyncGeneratorType():
                frame, awaited = awaited.ag_frame, awaited.ag_await
            case GeneratorType():
                frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
            case _:
                return
        if frame is not None:
            yield frame, frame.f_lineno


def _stack(frames: Frames) -> str | None:
    try:
        lines = "".join(_frames(frames))
        return _end_of(_STACK + lines) if lines else None
    except BaseException:
        return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of a group and of the groups in it; an exception that is not a group is its own leaf."""
    seen: set[int] = set()
    stack = [iter((error,))]
    while stack:
        for each in stack[-1]:
            if not issubclass(type(each), BaseExceptionGroup):
                yield each
            elif id(each) not in seen:
                seen.add(id(each))
                stack.append(iter(_members(each)))
                break
        else:
            stack.pop()


def _seconds_of(error: BaseException) -> float | None:
    """Return the delay of a RetryAfter; None for any other exception, and for one whose class changed the delay."""
    if not issubclass(type(error), RetryAfter):
        return None
    try:
        seconds: Any = error.seconds  # type: ignore[attr-defined]
    except BaseException:  # a subclass may have any attributes
        return None
    return seconds if type(seconds) is float and 0 <= seconds <= MAX_SECONDS else None


def _members(group: BaseException) -> tuple[BaseException, ...]:
    members: tuple[BaseException, ...] = BaseExceptionGroup.exceptions.__get__(group)  # whatever a subclass says
    return members


def _attribute(error: BaseException, name: str) -> Any:
    """Return an attribute that every exception has, whatever its class says of it."""
    return BaseException.__dict__[name].__get__(error)


def _chain(error: BaseException, own: str, depth: int, budget: Iterator[int]) -> Iterator[str]:
    """Yield the lines of an exception, after those of what caused it. budget: an item for each exception to show."""
    chain: list[tuple[str, BaseException]] = [("", error)]
    seen = {id(error)}
    while len(chain) < _MAX_EXCEPTIONS:
        last = chain[-1][1]
        cause, context = _attribute(last, "__cause__"), _attribute(last, "__context__")
        if cause is not None:
            link = (_CAUSE, cause)
        elif context is not None and not _attribute(last, "__suppress_context__"):
            link = (_CONTEXT, context)
        else:
            break
        if id(link[1]) in seen:
            break
        seen.add(id(link[1]))
        chain.append(link)
    for words, each in reversed(chain):
        yield from _one(each, own, depth, budget)
        yield words


def _one(error: BaseException, own: str, depth: int, budget: Iterator[int]) -> Iterator[str]:
    if next(budget, None) is None:
        return
    is_group = issubclass(type(error), BaseExceptionGroup)
    lines = list(_frames(_without_own(_walk(_attribute(error, "__traceback__")), own)))
    if lines:
        yield f"{'Exception Group ' if is_group else ''}Traceback (most recent call last):\n"
        yield from lines
    yield f"{_qualified_name(error)}: {text_of(error, _MAX_TEXT_LENGTH)}".rstrip(": ") + "\n"
    for note in _notes(error):
        yield f"{note}\n"
    if is_group and depth < _MAX_DEPTH:
        members = _members(error)
        for number, member in enumerate(members[:_MAX_EXCEPTIONS], 1):
            yield f"  +---------------- {number} ----------------\n"
            inner = "".join(_chain(member, "", depth + 1, budget))
            yield "".join(f"  | {line}" for line in inner.splitlines(keepends=True))
        if len(members) > _MAX_EXCEPTIONS:
            yield f"  +---------------- and {len(members) - _MAX_EXCEPTIONS} more\n"


def _qualified_name(error: BaseException) -> str:
    name = clean(type.__dict__["__qualname__"].__get__(type(error)), MAX_NAME_LENGTH)
    module = type.__dict__["__dict__"].__get__(type(error)).get("__module__", "")
    if not issubclass(type(module), str) or module in {"", "builtins", "__main__"}:
        return name
    return f"{clean(module, MAX_NAME_LENGTH)}.{name}"


def _notes(error: BaseException) -> list[str]:
    try:
        notes = error.__notes__
        if not issubclass(type(notes), list | tuple):
            return []
        return [clean(str(note), _MAX_TEXT_LENGTH) for note in notes[:_MAX_EXCEPTIONS]]
    except BaseException:  # an exception without notes, or one whose notes raise
        return []


def _walk(step: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while step is not None:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _without_own(frames: Iterator[tuple[FrameType, int]], own: str) -> Frames:
    return itertools.dropwhile(lambda entry: entry[0].f_code.co_filename == own, frames) if own else frames


def _frames(frames: Frames) -> Iterator[str]:
    try:
        # Positive limits keep the outermost frames, negative ones the innermost. Both read the source lines kept only.
        summary = traceback.StackSummary.extract(iter(frames), limit=-_MAX_FRAMES)
        lines = summary.format()
    except Exception as reason:  # a __loader__ may raise when it is asked for its source
        lines = [f"  [the frames cannot be shown: {describe(reason, MAX_NAME_LENGTH)}]\n"]
    for entry in lines:
        for line in entry.splitlines():
            yield clean(line, _MAX_LINE_LENGTH) + "\n"


def _end_of(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TRACEBACK_BYTES:
        return text
    end = encoded[len(encoded) - MAX_TRACEBACK_BYTES + len(CUT) :]
    return CUT + end.decode(errors="ignore")
