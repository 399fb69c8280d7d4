"""How often a key may ask: so many requests a second, and some at once after silence.

A bucket of tokens for each key, refilled as time goes by: two numbers, whatever the rate. (The framework's own limiter
keeps the time of every request of its window, as JSON, and says no Retry-After.) Each gateway counts for itself.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from heimdex_gateway.errors import Problem
from heimdex_gateway.middleware.api_keys import is_open

HEADERS: Final = ("RateLimit-Limit", "RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset")


class Limit:
    """Of one gateway. `per_second`: the setting, the rate and, where it has two numbers, the most at once."""

    def __init__(self, per_second: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = per_second[0]
        self.most = math.floor(per_second[1]) if len(per_second) > 1 else max(1, math.ceil(self.rate))
        self._clock = clock
        #: By key: tokens, and when there were so many. There are no more entries than keys.
        self._buckets: dict[str, tuple[float, float]] = {}
        window = max(1, round(self.most / self.rate))
        self._fixed = {"RateLimit-Limit": str(self.most), "RateLimit-Policy": f"{self.most};w={window}"}

    def take(self, key: str) -> dict[str, str]:
        """One request of this key; returns the headers of its answer. Raises Problem 429."""
        now = self._clock()
        tokens, at = self._buckets.get(key, (float(self.most), now))
        tokens = min(float(self.most), tokens + (now - at) * self.rate)
        allowed = tokens >= 1
        if allowed:
            tokens -= 1
        self._buckets[key] = (tokens, now)
        headers = {
            **self._fixed,
            "RateLimit-Remaining": str(int(tokens)),
            "RateLimit-Reset": str(math.ceil((self.most - tokens) / self.rate)),
        }
        if not allowed:
            seconds = max(1, math.ceil((1 - tokens) / self.rate))
            raise Problem(
                429,
                f"Too many requests: {self.rate:g} a second are allowed, {self.most} of them at once. "
                f"Try again in {seconds} s.",
                {**headers, "Retry-After": str(seconds)},
            )
        return headers


class Limiting(ASGIMiddleware):
    """Holds every request for jobs to the limit of its key; where there are no keys, that of all callers together."""

    scopes = (ScopeType.HTTP,)
    should_bypass_for_scope = staticmethod(is_open)

    def __init__(self, limit: Limit) -> None:
        self._limit = limit

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Raises Problem 429."""
        told = self._limit.take(scope.get("auth") or "")

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders(message).update(told)
            await send(message)

        await next_app(scope, receive, tell)
