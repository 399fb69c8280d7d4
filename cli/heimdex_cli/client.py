"""The HTTP API as the command line uses it. main.py, follow.py and demo.py call it; nothing else speaks HTTP to it."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, cast, get_args

import httpx
from httpx_sse import EventSource, ServerSentEvent

from heimdex_cli.errors import Unreachable, Unusable
from heimdex_cli.output.program_name import typed

DEFAULT_URL = "http://localhost:8000"
ENDED = ("completed", "failed", "canceled")
Status = Literal["pending", "processing", "completed", "failed", "canceled"]
STATUSES: tuple[str, ...] = get_args(Status)
#: The most jobs that the API puts on a page.
MAX_PAGE = 1000
#: The API says something on an open stream every 15 s; a stream that is silent for longer than this is dead.
SILENCE_SECONDS = 40.0
#: Answers of the 4xx range that are about the moment, not about what was given.
_LATER = (408, 429)


class Job(TypedDict):
    """The answer of GET /jobs/{id}. Times are UTC, `2025-10-28T12:00:00.000000Z`; progress is a percentage."""

    id: str
    status: Status
    stage: str | None
    progress: int
    result: dict[str, Any] | None
    error: str | None
    created_at: str
    updated_at: str


class EndedAttempt(TypedDict):
    """The attempt that an event ended."""

    stage: str
    attempt: int
    started_at: str | None
    duration_seconds: float | None


class Event(TypedDict):
    """One entry of a job's history."""

    id: str
    event: str
    run: int
    stage: str | None
    at: str
    ended: EndedAttempt | None
    error: str | None
    retry_in_seconds: float | None


_JOB = Job.__required_keys__


@dataclass(frozen=True)
class StreamEvent:
    """One message of a job's live stream: `data` is an Event, or what a `progress` tick tells (stage, attempt,
    progress, at). Only the former has an id.
    """

    id: str | None
    name: str
    data: dict[str, Any]


class JobsApi:
    """A connection to one Heimdex; a context manager.

    api_key: sent as a bearer token. Its methods raise Unusable when the API refuses what it was given (4xx, with the
    API's own sentence), and before anything is asked when a job's id is no UUID. They raise Unreachable when the API
    does not answer within ten seconds, answers with a 5xx or with something else than ours, or says that it is too busy
    (429).
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        try:
            parsed = httpx.URL(url)
            # As a connection will: a label that is empty or too long is found there only, and as no error of httpx.
            parsed.raw_host.decode().encode("idna")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Unusable(f"HEIMDEX_URL={url!r} is not a URL: {error}.") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise Unusable(f"HEIMDEX_URL={url!r} is not an HTTP URL such as {DEFAULT_URL}.")
        if not 0 < (parsed.port or 80) <= 65_535:
            raise Unusable(f"HEIMDEX_URL={url!r} names the port {parsed.port}: there are 1 to 65535.")
        if parsed.query or parsed.fragment:
            raise Unusable(f"HEIMDEX_URL={url!r} has a query or a fragment: give what comes before the '?' or '#'.")
        headers = {}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
                raise Unusable("HEIMDEX_API_KEY cannot be sent: it has a space, a line break or a letter beyond ASCII.")
            headers["Authorization"] = f"Bearer {api_key}"
        # As it is shown: a password for a proxy in front is nobody else's.
        self.url = str(parsed.copy_with(userinfo=b"")).rstrip("/")
        try:
            self._client = httpx.Client(base_url=parsed, headers=headers, timeout=10)
        except (OSError, ValueError, httpx.InvalidURL) as error:
            raise Unusable(
                f"The HTTP client cannot be set up ({error}): look at SSL_CERT_FILE, SSL_CERT_DIR and the proxy's "
                "variables."
            ) from error

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The one at HEIMDEX_URL, by default http://localhost:8000, with the key HEIMDEX_API_KEY where it is set."""
        return cls(environ.get("HEIMDEX_URL") or DEFAULT_URL, environ.get("HEIMDEX_API_KEY"))

    def submit(self, job_type: str, fail_at_stage: str | None = None, callback_url: str | None = None) -> str:
        """POST /jobs. Returns the new job's id."""
        wanted = {"type": job_type, "fail_at_stage": fail_at_stage, "callback_url": callback_url}
        body = {name: value for name, value in wanted.items() if value is not None}
        return str(self._ask("POST", "/jobs", {"job_id"}, body=body)["job_id"])

    def get(self, job_id: str) -> Job:
        """GET /jobs/{job_id}."""
        return cast(Job, self._ask("GET", _path(job_id), _JOB))

    def jobs(self, status: str | None = None, job_type: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """GET /jobs, newest first, page after page as they are needed: `limit` jobs at most, or all that there are."""
        cursor: str | None = None
        while limit is None or limit > 0:
            size = MAX_PAGE if limit is None else min(limit, MAX_PAGE)
            wanted = {"status": status, "type": job_type, "limit": str(size), "cursor": cursor}
            query = {name: value for name, value in wanted.items() if value is not None}
            page = self._ask("GET", "/jobs", {"jobs", "next_cursor"}, query=query)
            found = cast(list[Job], page["jobs"])
            yield from found
            cursor = page["next_cursor"]
            if cursor is None:
                return
            limit = None if limit is None else limit - len(found)

    def cancel(self, job_id: str) -> Job:
        """POST /jobs/{job_id}/cancel. Returns the job as it then is."""
        return cast(Job, self._ask("POST", f"{_path(job_id)}/cancel", _JOB))

    def retry(self, job_id: str, *, from_start: bool = False) -> Job:
        """POST /jobs/{job_id}/retry. Returns the job as it then is."""
        query = {"from": "start"} if from_start else None
        return cast(Job, self._ask("POST", f"{_path(job_id)}/retry", _JOB, query=query))

    def events(self, job_id: str) -> list[Event]:
        """GET /jobs/{job_id}/events: the history so far, in order."""
        return cast(list[Event], self._ask("GET", f"{_path(job_id)}/events", {"events"})["events"])

    def listen(self, job_id: str, after: str | None = None) -> Iterator[StreamEvent]:
        """The live stream of one connection: the history after the event `after`, then each change as it happens.

        It ends with the event that ends the job; or earlier, with or without Unreachable, when the connection breaks:
        come again with the last id that was told.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(10, read=SILENCE_SECONDS)
        with (
            self._unreachable_where_nothing_answers(),
            self._client.stream("GET", f"{_path(job_id)}/events", headers=headers, timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
                self._refuse(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise Unreachable(f"{self.url} tells no live events: is it a Heimdex of this version?")
            for sent in EventSource(response).iter_sse():
                if sent.data:  # without: a keep-alive
                    yield self._told(sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _told(self, sent: ServerSentEvent) -> StreamEvent:
        try:
            data = json.loads(sent.data)
        except json.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise Unreachable(f"{self.url} sent an event that is no JSON object: is it Heimdex?")
        # A tick has no id of its own; the reader repeats the one before it.
        return StreamEvent(data.get("id"), sent.event, data)

    def _ask(
        self, method: str, path: str, keys: Set[str], *, body: object = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The answer, which has these keys at least."""
        with self._unreachable_where_nothing_answers():
            response = self._client.request(method, path, json=body, params=query)
        if not response.is_success:
            self._refuse(response)
        answer = self._object(response)
        if missing := keys - answer.keys():
            raise Unreachable(f"{self.url} answered without {', '.join(sorted(missing))}: is it Heimdex?")
        return answer

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(f"{self.url} answered {response.status_code} without a JSON object: is it Heimdex?")
        return answer

    def _refuse(self, response: httpx.Response) -> None:
        answer = self._object(response)
        sentence = f"{answer.get('detail', response.reason_phrase)} ({response.status_code} from {self.url})"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            sentence += " HEIMDEX_API_KEY is where the key is taken from."
        if response.is_client_error and response.status_code not in _LATER:
            raise Unusable(sentence)
        raise Unreachable(sentence)

    @contextmanager
    def _unreachable_where_nothing_answers(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(
                f"Nothing answers at {self.url} ({reason}): start it with `{typed()} run`, or set HEIMDEX_URL."
            ) from error


def _path(job_id: str) -> str:
    """Raises Unusable for what is no UUID: in a path it could be another request's, as `` and `<id>/events` are."""
    try:
        well_formed = str(uuid.UUID(job_id)) == job_id.lower()
    except ValueError:
        well_formed = False
    if not well_formed:
        said = f"{job_id[:80]!r} is no job's id" if job_id else "The job's id is empty"
        raise Unusable(f"{said}: give the UUID that was answered when the job was submitted.")
    return f"/jobs/{job_id}"
