"""Which requests need no API key, and count against no limit."""

from typing import Final

from litestar.enums import HttpMethod
from litestar.types import Scope

#: Marks a handler that can be called without a key, because it reveals nothing about any job.
OPEN: Final = "open_to_all"


#: The path of the OpenAPI document and its page. Their handlers belong to the framework and cannot be marked.
_SCHEMA: Final = "/schema"


def is_open(scope: Scope) -> bool:
    """Whether this request needs no API key. A handler that is not marked OPEN needs one."""
    return bool(
        scope["route_handler"].opt.get(OPEN)
        or scope["path"] == _SCHEMA
        or scope["path"].startswith(f"{_SCHEMA}/")
        or scope.get("method") == HttpMethod.OPTIONS
    )
