"""W3C trace context: one trace per job, one new span per message. Every publisher uses it.

A `traceparent` header has four fixed-width fields (https://www.w3.org/TR/trace-context/, section 3.2), so a regular
expression parses it.
"""

import random
import re

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)


def start(caller: str | None = None) -> str:
    """Return a traceparent with a new span: of the caller's trace, or of a new sampled trace.

    caller: the caller's traceparent. A missing or invalid one starts a new trace.
    """
    match = _TRACEPARENT.fullmatch(caller.strip()) if caller else None
    if match is None:
        return f"00-{_hex(128)}-{_hex(64)}-01"
    return f"00-{match['trace']}-{_hex(64)}-{match['flags']}"


def _hex(bits: int) -> str:
    """Return random bits in hexadecimal, never all zero: W3C forbids an all-zero id. Ids are unique, not secret."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"


def child(parent: str | None) -> str:
    """Return the next span of the parent's trace, for a message that a process publishes in response to another one."""
    return start(parent)


def trace_id(traceparent: str | None) -> str | None:
    """Return the 32 hex digits that all spans of one job share, or None for a missing or invalid traceparent."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return match["trace"] if match else None
