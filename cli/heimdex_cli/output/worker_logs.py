"""Hear of failed attempts from the stage workers' logs, for `heimdex demo`: the API tells only how a job
ended.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FailedAttempt:
    """One line `{"event": "attempt_failed", ...}` of a worker's log."""

    job_id: str
    stage: str
    attempt: int
    error: str
    delay_seconds: float | None
    """Until the next attempt; None after the last."""


class AttemptLog:
    """Reads what is new in the logs `<stage>.log` of this folder."""

    def __init__(self, logs: Path, stages: Iterable[str]) -> None:
        self._offsets = {logs / f"{stage}.log": 0 for stage in stages}

    def read_new(self) -> list[FailedAttempt]:
        """The attempts that were logged since the last call; lines of any other kind are passed over."""
        found = []
        for path, offset in self._offsets.items():
            try:
                with path.open("rb") as log:
                    log.seek(offset)
                    data = log.read()
            except FileNotFoundError:
                continue  # its worker has not started yet
            whole = data.rfind(b"\n") + 1  # the last line may be half written
            self._offsets[path] = offset + whole
            found += [attempt for line in data[:whole].splitlines() if (attempt := _parse(line))]
        return found


def _parse(line: bytes) -> FailedAttempt | None:
    if b"attempt_failed" not in line:
        return None
    try:
        said = json.loads(line)
        if said["event"] != "attempt_failed":
            return None
        delay = said.get("delay_seconds")
        return FailedAttempt(
            said["job_id"],
            said["stage"],
            said["attempt"],
            said["error"],
            None if delay is None else float(delay),
        )
    except (ValueError, TypeError, KeyError):
        return None
