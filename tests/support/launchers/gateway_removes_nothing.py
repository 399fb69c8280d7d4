"""A gateway that publishes a cancel but does not remove the canceled job's work, as if it had died in between."""

from typing import Any

from heimdex_gateway.jobs import cancel
from heimdex_gateway.main import main


async def nothing(*_: Any) -> None:
    return


cancel.Cancel._removal = nothing  # type: ignore[method-assign]
main()
