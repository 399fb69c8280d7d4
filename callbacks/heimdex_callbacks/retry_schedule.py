"""Retry delays for failed callbacks: seconds at first, later one hour, for about a day in total. Pure."""

import random
from collections.abc import Sequence
from typing import Final

#: Seconds of delay after the first, second, … failed attempt: about a day in total, and 30 attempts.
RETRY_DELAYS: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, *[3600.0] * 24)
#: Random variation, as a fraction of the delay, so that callbacks that failed together are not retried together.
_SPREAD: Final = 0.1


def delay_after(
    attempts: int, random_: random.Random | None = None, delays: Sequence[float] = RETRY_DELAYS
) -> float | None:
    """Seconds until the next attempt, after this many failed attempts. None: no attempts are left."""
    if attempts > len(delays):
        return None
    spread = (random_ or random).uniform(-_SPREAD, _SPREAD)
    return round(delays[attempts - 1] * (1 + spread), 3)
