"""A logger that records its entries, for tests of code that takes a logger."""

from typing import Any, Self


class RecordingLogger:
    """Has the methods of structlog's loggers. `entries` has what was logged, in order; bound loggers share it."""

    def __init__(self, entries: list[dict[str, Any]] | None = None, **bound: Any) -> None:
        self.entries: list[dict[str, Any]] = [] if entries is None else entries
        self._bound = bound

    def bind(self, **fields: Any) -> Self:
        return type(self)(self.entries, **{**self._bound, **fields})

    def _record(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.entries.append({"event": event, "level": level, **self._bound, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._record("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._record("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._record("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._record("error", event, fields)

    exception = error

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the entries of this event, in order."""
        return [entry for entry in self.entries if entry["event"] == event]
