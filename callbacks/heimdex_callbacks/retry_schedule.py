"""When a callback that failed is tried again: soon at first, hourly later, for a day in all. Pure."""

import random
from typing import Final

#: Seconds after the first, the second, ... failed try; about a day, and 30 tries.
RETRY_DELAYS: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, *[3600.0] * 24)
#: Callbacks that failed together do not come back together.
_SPREAD: Final = 0.1


def delay_after(tries: int, random_: random.Random | None = None) -> float | None:
    """Seconds until the next try, after so many failed ones; None: it is given up."""
    if tries > len(RETRY_DELAYS):
        return None
    spread = (random_ or random).uniform(-_SPREAD, _SPREAD)
    return round(RETRY_DELAYS[tries - 1] * (1 + spread), 3)
