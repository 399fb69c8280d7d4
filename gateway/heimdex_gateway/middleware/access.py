"""Who may come in from where and how often: made of the settings, opened in front of the routes by `create_app`.

Where a setting is empty, nothing of its door is installed, and no request pays for it.
"""

from dataclasses import dataclass
from typing import Any

from litestar.config.cors import CORSConfig

from heimdex_contracts import messages
from heimdex_contracts.runtime.settings import Settings
from heimdex_gateway.middleware import api_keys, cors, rate_limit


@dataclass(frozen=True)
class AccessControl:
    """Of one gateway."""

    keys: api_keys.Keys
    limit: rate_limit.Limit | None
    cors: CORSConfig | None

    @classmethod
    def of(cls, settings: Settings) -> "AccessControl":
        """As the settings say."""
        limit = rate_limit.Limit(settings.rate_limit) if settings.rate_limit else None
        return cls(api_keys.Keys(settings.api_keys), limit, cors.config(settings.cors_origins))

    @property
    def middleware(self) -> list[Any]:
        """In the order in which a request passes them."""
        found: list[Any] = [api_keys.Authenticating(self.keys)] if self.keys else []
        if self.limit is not None:
            found.append(rate_limit.Limiting(self.limit))
        return found

    def tenant_of(self, request: Any) -> str:
        """Whose jobs this request may see.

        On a gateway without keys those of the default tenant: one that lost its keys by mistake shows nobody else's.
        """
        # A route that somebody put beside the doors knows no user: this raises, so it shows nothing.
        return request.user if self.keys else messages.DEFAULT_TENANT
