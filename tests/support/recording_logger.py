"""A logger that remembers, for code that is given one: the same calls as structlog's, `entries` in order."""

from typing import Any, Self


class RecordingLogger:
    """`bind` shares the entries."""

    def __init__(self, entries: list[dict[str, Any]] | None = None, **bound: Any) -> None:
        self.entries: list[dict[str, Any]] = [] if entries is None else entries
        self._bound = bound

    def bind(self, **fields: Any) -> Self:
        return type(self)(self.entries, **{**self._bound, **fields})

    def _keep(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.entries.append({"event": event, "level": level, **self._bound, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._keep("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._keep("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._keep("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._keep("error", event, fields)

    exception = error

    def of(self, event: str) -> list[dict[str, Any]]:
        """The entries of this event."""
        return [entry for entry in self.entries if entry["event"] == event]
