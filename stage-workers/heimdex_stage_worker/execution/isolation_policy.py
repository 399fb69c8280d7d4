"""Decides whether an attempt runs in a separate process, because the job is suspected of killing its worker.

A job whose last attempt was lost with its worker is redelivered, and so is a job whose last attempt failed with an
error. The claim of the last attempt distinguishes them (see `claims`).
"""

from typing import Final

#: One lost worker may be an accident; after two in a row, the job is suspected.
ISOLATED_FROM_ATTEMPT: Final = 3


def is_suspect(vanished: bool, attempt: int, allowed: int) -> bool:
    """Return whether this attempt must run in a process of its own.

    That is the case if the previous attempt vanished, and this one is the third or the last one, whichever comes first.
    It is never the case for a stage with one attempt. vanished: the previous attempt was lost with its process.
    allowed: the maximum number of attempts of the stage.

    | allowed attempts | isolated, if the previous attempt was lost |
    | --- | --- |
    | 1 | never |
    | 2 | the second |
    | 3 or more | from the third on |
    """
    return vanished and attempt >= min(ISOLATED_FROM_ATTEMPT, allowed)
