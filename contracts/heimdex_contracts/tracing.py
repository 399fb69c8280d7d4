"""W3C trace context: one trace a job, a new span a message. Used by whoever publishes.

The header is four fixed-width fields (https://www.w3.org/TR/trace-context/, section 3.2), so a pattern reads it.
"""

import random
import re

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)


def start(caller: str | None = None) -> str:
    """A traceparent of the caller's trace, or of a new one (sampled) where the caller sent none that is valid."""
    match = _TRACEPARENT.fullmatch(caller.strip()) if caller else None
    if match is None:
        return f"00-{_hex(128)}-{_hex(64)}-01"
    return f"00-{match['trace']}-{_hex(64)}-{match['flags']}"


def _hex(bits: int) -> str:
    """So many random bits, never all zero, which would be no id. They need be unique, not secret."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"


def child(parent: str | None) -> str:
    """The next span of the same trace: what a process publishes in answer to a message."""
    return start(parent)


def trace_id(traceparent: str | None) -> str | None:
    """The 32 hex digits that all spans of one job share, or None."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return match["trace"] if match else None
