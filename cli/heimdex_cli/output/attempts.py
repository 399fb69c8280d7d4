"""The text of an attempt that failed or was lost."""

import textwrap
from collections.abc import Mapping
from typing import Any, Final

#: The events of the history that report such an attempt.
UNSUCCESSFUL: Final = ("attempt_failed", "attempt_lost")


def describe_attempt(event: str, stage: str, attempt: int, error: str | None, delay_seconds: float | None) -> str:
    """Return one sentence, without the full stop: what happened, and when the next attempt begins.

    event: one of UNSUCCESSFUL. delay_seconds: None after the last attempt. A lost attempt is noticed when the next one
    begins.
    """
    if event == "attempt_lost":
        return f"attempt {attempt} at {stage} was lost: {(error or '').removeprefix('worker lost: ')}"
    return f"attempt {attempt} at {stage} failed: {error}{next_attempt(event, delay_seconds)}"


def next_attempt(event: str, delay_seconds: float | None) -> str:
    """Return when the next attempt begins, as the end of a sentence; empty where there is nothing to say."""
    return "" if delay_seconds is None or event == "attempt_lost" else f"; next attempt in {delay_seconds:g} s"


def traceback_of(event: Mapping[str, Any]) -> str | None:
    """Return the traceback of an event of the history, indented. None where it has none, or an older API sent it."""
    traceback = event.get("traceback")
    return textwrap.indent(traceback.rstrip("\n"), "    ") if traceback else None
