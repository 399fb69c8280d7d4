"""One JSON object per line on stderr, for our entries and those of libraries."""

import json
import subprocess
import sys
from typing import Any

SCRIPT = """
import logging, warnings
from heimdex_contracts.runtime import logs
log = logs.configure({level!r}, "heimdex-testing")
{body}
"""


def lines(body: str, level: str = "info") -> list[dict[str, Any]]:
    script = SCRIPT.format(level=level, body=body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_log_line_is_json_with_event_level_time_and_service() -> None:
    (entry,) = lines('log.info("ready", job_id="some-id", attempt=2)')
    assert entry["event"] == "ready"
    assert entry["level"] == "info"
    assert entry["service"] == "heimdex-testing"
    assert (entry["job_id"], entry["attempt"]) == ("some-id", 2)
    assert entry["timestamp"].endswith("Z")


def test_an_exceptions_trace_stays_on_its_line() -> None:
    (entry,) = lines('try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception("broken")')
    assert "ZeroDivisionError" in entry["exception"]
    assert entry["level"] == "error"


def test_a_value_that_json_cannot_encode_is_still_logged() -> None:
    (entry,) = lines('log.info("odd", value=object(), text="a\\nb\\x00", raw=b"\\xff", number=float("nan"))')
    assert entry["event"] == "odd"
    assert entry["text"] == "a\nb\x00"


def test_a_librarys_warning_and_a_python_warning_are_json_too() -> None:
    entries = lines(
        'logging.getLogger("lib").warning("hm %s", 1)\nwarnings.warn("old")\nlogging.getLogger("lib").info("x")'
    )
    assert [entry["level"] for entry in entries] == ["warning", "warning"]
    assert entries[0]["event"] == "hm 1"


def test_entries_below_the_log_level_are_omitted() -> None:
    entries = lines('log.debug("a")\nlog.info("b")\nlog.warning("c")', level="warning")
    assert [entry["event"] for entry in entries] == ["c"]


def test_a_lone_surrogate_does_not_break_the_log() -> None:
    entries = lines('log.info("before", text="\\ud800")\nlog.info("after")')
    assert [entry["event"] for entry in entries] == ["before", "after"]
