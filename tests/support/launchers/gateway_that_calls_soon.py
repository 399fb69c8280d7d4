"""A gateway whose callbacks have a retry delay of 0.1 s, and eight attempts in all."""

from heimdex_callbacks import retry_schedule
from heimdex_gateway.main import main

retry_schedule.RETRY_DELAYS = (0.1,) * 7  # type: ignore[misc]
main()
