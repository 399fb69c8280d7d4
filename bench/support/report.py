"""Computes percentiles and medians over runs, and formats and saves the results."""

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 of the values, in their unit."""
    return {"p50": percentile(ms, 50), "p99": percentile(ms, 99)}


def median(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure over runs with the same keys, also in nested dictionaries.

    A figure that is not a number is that of the first run.
    """
    medians: Figures = {}
    for name, first in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(first, dict):
            medians[name] = median(values)
        else:
            medians[name] = statistics.median(values) if isinstance(first, (int, float)) else first
    return medians


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a text table: the first column is aligned left, the others right; a row of one cell is a heading."""
    width = max(len(row) for row in rows)
    widths = [max(len(row[i]) for row in rows if len(row) > max(1, i)) for i in range(width)]
    lines = [title, ""]
    for row in rows:
        if len(row) == 1:
            lines += ["", row[0]] if lines[-1] else [row[0]]
            continue
        cells = [row[0].ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=False))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def machine() -> str:
    """Describe the machine in one line: its cores, the version of Python, and the load average."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, load average before: {load}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def save(path: str | None, figures: Figures) -> None:
    """Write the figures to the file as JSON, unless `path` is None."""
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n")
