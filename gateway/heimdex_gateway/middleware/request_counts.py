"""Counts HTTP requests, their errors and their durations for `nats micro stats`."""

import time
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from heimdex_contracts.runtime.micro import Counters


def counting(counters: Counters) -> Any:
    """A middleware that counts every HTTP request; responses with a 5xx status count as errors."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            started = time.monotonic_ns()
            error: str | None = None

            async def watch(message: Message) -> None:
                nonlocal error
                if message["type"] == "http.response.start" and message["status"] >= 500:
                    error = f"{message['status']} {scope['path']}"
                await send(message)

            try:
                await app(scope, receive, watch)
            finally:
                counters.count(time.monotonic_ns() - started, error)

        return count

    return wrap
