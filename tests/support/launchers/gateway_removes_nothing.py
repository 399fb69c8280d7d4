"""A gateway that ends, as it were, between a cancel's publish and its removal of the canceled job's work."""

from typing import Any

from heimdex_gateway.jobs import cancel
from heimdex_gateway.main import main


async def nothing(*_: Any) -> None:
    return


cancel.Cancel._removal = nothing  # type: ignore[method-assign]
main()
