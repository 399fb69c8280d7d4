"""The HTTP API as the command line uses it: submit a job, get a job. main.py, follow.py and demo.py call
it.
"""

import json
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, cast
from urllib.parse import quote

import httpx

from heimdex_cli.errors import Unreachable, Unusable

DEFAULT_URL = "http://localhost:8000"
ENDED = ("completed", "failed", "canceled")


class Job(TypedDict):
    """The answer of GET /jobs/{id}."""

    id: str
    status: Literal["pending", "processing", "completed", "failed", "canceled"]
    stage: str | None
    progress: int
    result: dict[str, Any] | None
    error: str | None
    created_at: str
    updated_at: str


class JobsApi:
    """A connection to one Heimdex; a context manager.

    Its methods raise Unusable when the API refuses what it was given (4xx, with the API's own sentence) and
    Unreachable when it does not answer within ten seconds, or answers with a 5xx or with something else than
    JSON.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise Unusable(f"HEIMDEX_URL={url!r} is not a URL: {error}.") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise Unusable(f"HEIMDEX_URL={url!r} is not an HTTP URL such as {DEFAULT_URL}.")
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, timeout=10)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The one at HEIMDEX_URL, by default http://localhost:8000."""
        return cls(environ.get("HEIMDEX_URL") or DEFAULT_URL)

    def submit(self, job_type: str, fail_at_stage: str | None = None) -> str:
        """POST /jobs. Returns the new job's id."""
        body = {"type": job_type} if fail_at_stage is None else {"type": job_type, "fail_at_stage": fail_at_stage}
        return str(self._ask("POST", "/jobs", body)["job_id"])

    def get(self, job_id: str) -> Job:
        """GET /jobs/{job_id}."""
        # One path segment, whatever the user typed.
        return cast(Job, self._ask("GET", f"/jobs/{quote(job_id, safe='')}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(
                f"Nothing answers at {self.url} ({reason}): start it with `heimdex run`, or set HEIMDEX_URL."
            ) from error
        try:
            answer = response.json()
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(f"{self.url} answered {response.status_code} without a JSON object: is it Heimdex?")
        if response.is_success:
            return answer
        sentence = f"{answer.get('detail', response.reason_phrase)} ({response.status_code} from {self.url})"
        raise Unusable(sentence) if response.is_client_error else Unreachable(sentence)
