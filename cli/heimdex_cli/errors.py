"""Everything the `heimdex` command can say instead of doing its work; main.py prints it and exits with its
code.

HeimdexError          exit code 1: it was tried and did not work
|-- Unusable          exit code 2: what the user gave cannot be used (an argument, a setting, a port, an id)
|-- Unreachable       exit code 4: the API does not answer, or answers that it cannot
|-- ServerFailed      a server of the embedded system did not start; carries the tail of its log
`-- NotReady          the embedded system did not become ready; carries the tail of a log
"""

from pathlib import Path


class HeimdexError(Exception):
    """One sentence for the person at the terminal; `detail` may follow it on lines of its own."""

    exit_code = 1

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.detail = detail


class Unusable(HeimdexError):
    """What the user gave cannot be used."""

    exit_code = 2


class Unreachable(HeimdexError):
    """The API does not answer, or answers that it cannot."""

    # Not 1: `heimdex watch` answers 1 for a failed job, and an outage says nothing about the job.
    exit_code = 4


class ServerFailed(HeimdexError):
    """A server of the embedded system did not start."""


class NotReady(HeimdexError):
    """The embedded system did not become ready."""


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, each indented by two spaces; empty when there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 64 * 1024))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
