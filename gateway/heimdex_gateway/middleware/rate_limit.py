"""Rate limit by API key: a number of requests a second, and a burst after a time without requests.

Each key has a token bucket, which is refilled continuously and takes two numbers, whatever the rate. (The framework's
own limiter stores the time of every request in its window, as JSON, and sends no Retry-After.) Each gateway counts
separately.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from heimdex_gateway.middleware.open_routes import is_open
from heimdex_gateway.problem import Problem

HEADERS: Final = ("RateLimit-Limit", "RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset")


class Limit:
    """The token buckets of one gateway.

    `per_second`: the setting; its first number is the rate in requests a second, its optional second number the burst.
    """

    def __init__(self, per_second: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = per_second[0]
        self.most = math.floor(per_second[1]) if len(per_second) > 1 else max(1, math.ceil(self.rate))
        self._clock = clock
        #: By key: the tokens, and the time at which they were counted. There is at most one entry for each key.
        self._buckets: dict[str, tuple[float, float]] = {}
        window = max(1, round(self.most / self.rate))
        self._fixed = {"RateLimit-Limit": str(self.most), "RateLimit-Policy": f"{self.most};w={window}"}

    def take(self, key: str) -> dict[str, str]:
        """Take a token for one request of this key. Returns the response headers. Raises Problem 429."""
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
                f"Too many requests: the limit is {self.rate:g} a second, with a burst of {self.most}. "
                f"Try again in {seconds} s.",
                {**headers, "Retry-After": str(seconds)},
            )
        return headers


class Limiting(ASGIMiddleware):
    """Applies the limit to every request for jobs, by key. Without keys, all callers share one limit."""

    scopes = (ScopeType.HTTP,)
    should_bypass_for_scope = staticmethod(is_open)

    def __init__(self, limit: Limit) -> None:
        self._limit = limit

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Limit one request, and add the RateLimit headers to its response. Raises Problem 429."""
        rate_headers = self._limit.take(scope.get("auth") or "")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders(message).update(rate_headers)
            await send(message)

        await next_app(scope, receive, send_with_headers)
