"""Access control from the settings: API keys, rate limit and CORS. `create_app` installs it in front of the routes.

Where a setting is empty, its middleware is not installed and costs no request anything.
"""

from dataclasses import dataclass
from typing import Any

from litestar.config.cors import CORSConfig

from heimdex_contracts import messages
from heimdex_contracts.runtime.settings import Settings
from heimdex_gateway.middleware import api_keys, cors, rate_limit


@dataclass(frozen=True)
class AccessControl:
    """The access rules of one gateway. limit, cors: None if the setting is empty."""

    keys: api_keys.Keys
    limit: rate_limit.Limit | None
    cors: CORSConfig | None

    @classmethod
    def from_settings(cls, settings: Settings) -> "AccessControl":
        """Build the rules that the settings describe."""
        limit = rate_limit.Limit(settings.rate_limit) if settings.rate_limit else None
        return cls(api_keys.Keys(settings.api_keys), limit, cors.config(settings.cors_origins))

    @property
    def middleware(self) -> list[Any]:
        """The middleware to install, in the order in which a request passes through it."""
        installed: list[Any] = [api_keys.Authenticating(self.keys)] if self.keys else []
        if self.limit is not None:
            installed.append(rate_limit.Limiting(self.limit))
        return installed

    def tenant_of(self, request: Any) -> str:
        """The tenant whose jobs this request may access.

        Without keys it is the default tenant. So a gateway that lost its keys by mistake shows no other tenant's jobs.
        """
        # A route that bypasses the middleware has no user: this raises, and no job is shown.
        return request.user if self.keys else messages.DEFAULT_TENANT
