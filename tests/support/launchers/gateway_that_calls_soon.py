"""A gateway that makes its next try to call back after a tenth of a second, eight tries in all."""

from heimdex_callbacks import retry_schedule
from heimdex_gateway.main import main

retry_schedule.RETRY_DELAYS = (0.1,) * 7  # type: ignore[misc]
main()
