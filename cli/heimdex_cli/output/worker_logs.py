"""Reads failed and lost attempts from the stage workers' logs, for `heimdex demo`.

The job that the API returns does not list them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from heimdex_cli.output.attempts import UNSUCCESSFUL


@dataclass(frozen=True)
class FailedAttempt:
    """One line `{"event": "attempt_failed", ...}` of a worker's log. event: one of UNSUCCESSFUL."""

    event: str
    job_id: str
    stage: str
    attempt: int
    error: str
    delay_seconds: float | None
    """Seconds until the next attempt; None after the last attempt."""


class AttemptLog:
    """Reads the new lines of the logs `<stage>.log` in one folder."""

    def __init__(self, logs: Path, stages: Iterable[str]) -> None:
        self._offsets = {logs / f"{stage}.log": 0 for stage in stages}

    def read_new(self) -> list[FailedAttempt]:
        """Return the failed and lost attempts that were logged since the last call; other lines are ignored."""
        attempts: list[FailedAttempt] = []
        for path, offset in self._offsets.items():
            try:
                with path.open("rb") as log:
                    log.seek(offset)
                    data = log.read()
            except FileNotFoundError:
                continue  # its worker has not started yet
            complete = data.rfind(b"\n") + 1  # the last line may be half written
            self._offsets[path] = offset + complete
            attempts += [attempt for line in data[:complete].splitlines() if (attempt := _parse(line))]
        return attempts


def _parse(line: bytes) -> FailedAttempt | None:
    if not any(event.encode() in line for event in UNSUCCESSFUL):
        return None
    try:
        entry = json.loads(line)
        if entry["event"] not in UNSUCCESSFUL:
            return None
        delay = entry.get("delay_seconds")
        return FailedAttempt(
            entry["event"],
            entry["job_id"],
            entry["stage"],
            entry["attempt"],
            entry["message"] if entry["event"] == "attempt_lost" else entry["error"],
            None if delay is None else float(delay),
        )
    except (ValueError, TypeError, KeyError):
        return None
