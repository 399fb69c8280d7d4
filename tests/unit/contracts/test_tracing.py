"""One trace per job, one span per message."""

import re

import pytest

from heimdex_contracts import tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
FORM = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def test_start_keeps_the_callers_trace_and_flags_with_a_new_span() -> None:
    started = tracing.start(PARENT)
    assert FORM.fullmatch(started)
    assert tracing.trace_id(started) == TRACE
    assert started.split("-")[2] != "00f067aa0ba902b7"
    assert tracing.start(f"00-{TRACE}-00f067aa0ba902b7-00").endswith("-00")


def test_child_is_another_span_of_the_same_trace() -> None:
    assert tracing.trace_id(tracing.child(PARENT)) == TRACE
    assert tracing.child(PARENT) != tracing.child(PARENT)


def test_start_reads_a_later_versions_header() -> None:
    assert tracing.trace_id(tracing.start(f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-brings")) == TRACE


@pytest.mark.parametrize(
    "caller",
    [
        None,
        "",
        "garbage",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7",
        f"00-{TRACE}-00f067aa0ba902b7-01\r\nX-Evil: 1",
    ],
)
def test_start_begins_a_new_trace_when_the_callers_header_is_not_valid(caller: str | None) -> None:
    started = tracing.start(caller)
    assert FORM.fullmatch(started)
    assert tracing.trace_id(started) != TRACE


def test_trace_id_is_none_when_there_is_none() -> None:
    assert tracing.trace_id(None) is None
    assert tracing.trace_id("garbage") is None
