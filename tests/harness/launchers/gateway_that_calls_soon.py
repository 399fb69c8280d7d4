"""A gateway that makes its next try to call back after a tenth of a second, eight tries in all."""

from heimdex_gateway.callbacks import pauses
from heimdex_gateway.main import main

pauses.PAUSES = (0.1,) * 7  # type: ignore[misc]
main()
