"""Reads a job's live stream as a caller does."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from tests.support.api import TERMINAL, Api


@dataclass(frozen=True)
class Sent:
    """One server-sent event; a progress event has no id."""

    id: str | None
    event: str
    data: dict[str, Any]

    @property
    def place(self) -> tuple[int, int]:
        step, attempt = (self.id or "").split(".")
        return int(step), int(attempt)


async def listen(api: Api, job_id: str, after: str | None = None) -> AsyncIterator[Sent]:
    """Yield the events of one connection until the gateway ends it."""
    headers = {"Last-Event-ID": after} if after is not None else {}
    timeout = httpx.Timeout(20, read=60)
    async with aconnect_sse(api.http, "GET", f"/jobs/{job_id}/events", headers=headers, timeout=timeout) as source:
        assert source.response.status_code == 200, await source.response.aread()
        async for sent in source.aiter_sse():
            if sent.data:
                data = sent.json()
                yield Sent(data.get("id"), sent.event, data)


async def entries(api: Api, job_id: str, after: str | None = None, most: int | None = None) -> list[Sent]:
    """Return the events of one connection without ticks: all, or `most`, after which the caller disconnects."""
    events: list[Sent] = []
    async with aclosing(listen(api, job_id, after)) as stream:
        async for sent in stream:
            if sent.id is not None:
                events.append(sent)
                if len(events) == most:
                    break
    return events


async def history(api: Api, job_id: str) -> list[dict[str, Any]]:
    """Return the job's history (GET /jobs/{id}/events as JSON)."""
    response = await api.http.get(f"/jobs/{job_id}/events")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    events: list[dict[str, Any]] = response.json()["events"]
    return events


class Resuming:
    """A caller that reconnects after every interruption with its last event id, and collects the events.

    `connections`: the number of its connections.
    """

    def __init__(self, api: Api, job_id: str) -> None:
        self.events: list[Sent] = []
        self.ticks: list[Sent] = []
        self.connections = 0
        self._api = api
        self._job_id = job_id

    async def follow(self) -> None:
        """Collect events until the terminal event."""
        while not (self.events and self.events[-1].event in TERMINAL):
            self.connections += 1
            try:
                async for sent in listen(self._api, self._job_id, self.events[-1].id if self.events else None):
                    (self.ticks if sent.id is None else self.events).append(sent)
            except (httpx.HTTPError, AssertionError):
                continue

    def check(self, whole: list[dict[str, Any]]) -> None:
        """Assert that every event was received once and in order."""
        assert [sent.data for sent in self.events] == whole
        places = [sent.place for sent in self.events]
        assert places == sorted(set(places))
