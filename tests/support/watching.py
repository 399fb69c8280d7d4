"""A NATS client that collects the messages that `nats sub 'heimdex.>'` shows, and can send requests and publish."""

from typing import Any, Self

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

JOBS = "HEIMDEX_JOBS"


class Observer:
    """Collects every message on these subjects while its context is open; by default on `heimdex.>`."""

    def __init__(self, url: str, *subjects: str) -> None:
        self.nc = Client()
        self.seen: list[Msg] = []
        self._url = url
        self._subjects = subjects or ("heimdex.>",)

    async def __aenter__(self) -> Self:
        await self.nc.connect(self._url.split(","), max_reconnect_attempts=-1, reconnect_time_wait=0.1)

        async def keep(msg: Msg) -> None:
            self.seen.append(msg)

        for subject in self._subjects:
            await self.nc.subscribe(subject, cb=keep)
        await self.nc.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.nc.close()

    def subjects(self, prefix: str, job_id: str) -> list[str]:
        """Return the tokens of the messages on `<prefix>.<token>.<job_id>`, in order."""
        return [msg.subject.split(".")[2] for msg in self.messages(prefix, job_id)]

    def messages(self, prefix: str, job_id: str) -> list[Msg]:
        """Return the messages on `<prefix>.*.<job_id>`, in order."""
        return [msg for msg in self.seen if msg.subject.startswith(f"{prefix}.") and msg.subject.endswith(job_id)]

    def payloads(self, prefix: str, job_id: str) -> list[dict[str, Any]]:
        """Return the decoded payloads of the messages on `<prefix>.*.<job_id>`, in order."""
        return [msgspec.json.decode(msg.data) for msg in self.messages(prefix, job_id)]

    async def api(self, call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request to `$JS.API.<call>`, and return the decoded response, also when it is an error."""
        message = await self.nc.request(f"$JS.API.{call}", msgspec.json.encode(body) if body else b"", timeout=10)
        response: dict[str, Any] = msgspec.json.decode(message.data)
        return response

    async def count(self, stream: str = JOBS) -> int:
        """Return the number of messages in the stream, or -1 when it does not exist."""
        response = await self.api(f"STREAM.INFO.{stream}")
        return int(response["state"]["messages"]) if "state" in response else -1

    async def empty(self, stream: str = JOBS) -> bool:
        """Whether the stream exists and has no messages."""
        return await self.count(stream) == 0
