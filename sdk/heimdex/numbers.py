"""Reads the numbers that authors pass to us: any object that `float` takes, but no text."""

import math
from typing import Any


def number_of(value: Any) -> float | None:
    """Return the value as a float, an infinity if it is too large for one; None for text and what is not a number.

    Raises what a number's own `__float__` raises.
    """
    if isinstance(value, str | bytes | bytearray | memoryview):
        return None  # float() would parse it
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except TypeError:
        return None
