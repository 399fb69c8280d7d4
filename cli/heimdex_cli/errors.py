"""The errors of the `heimdex` command; main.py prints their sentence and exits with their exit code.

HeimdexError          exit code 1: the command failed
|-- Unusable          exit code 2: the user's input cannot be used (an argument, a setting, a port, an id)
|-- Unreachable       exit code 4: the API does not answer, or reports that it is unavailable
|-- ServerFailed      exit code 1: a server of the embedded system did not start; carries the tail of its log
`-- NotReady          exit code 1: the embedded system did not become ready; carries the tail of a log
"""

from pathlib import Path


class HeimdexError(Exception):
    """An error with one sentence for the user at the terminal; `detail` is printed below it on separate lines."""

    exit_code = 1

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.detail = detail


class Unusable(HeimdexError):
    """The user's input cannot be used: an argument, a setting, a port or an id."""

    exit_code = 2


class Unreachable(HeimdexError):
    """The API does not answer, or reports that it is unavailable."""

    # Not 1: `heimdex watch` exits with 1 for a failed job, and during an outage the job's state is unknown.
    exit_code = 4


class ServerFailed(HeimdexError):
    """A server of the embedded system did not start; `detail` has the tail of its log."""


class NotReady(HeimdexError):
    """The embedded system did not become ready; `detail` has the tail of the log of the likely cause."""


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log, each indented by two spaces; the empty string when the file does not exist."""
    try:
        with path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 64 * 1024))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
