"""The client of the HTTP API for the command line. Only main.py, commands/watch.py and commands/demo.py use it; no
other module sends requests to the API.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NotRequired, Self, TypedDict, cast, get_args

import httpx
from httpx_sse import EventSource, ServerSentEvent

from heimdex_cli.errors import Unreachable, Unusable
from heimdex_cli.output.program_name import typed

DEFAULT_URL = "http://localhost:8000"
ENDED = ("completed", "failed", "canceled")
Status = Literal["pending", "processing", "completed", "failed", "canceled"]
STATUSES: tuple[str, ...] = get_args(Status)
#: The maximum number of jobs on a page of the API.
MAX_PAGE = 1000
#: The API sends a keep-alive on an open stream every 15 s. A stream that is silent for longer than this is dead.
SILENCE_SECONDS = 40.0
#: The 4xx statuses that depend on the moment (request timeout, rate limit), not on the user's input.
_TEMPORARY_STATUSES = (408, 429)


class Job(TypedDict):
    """The response of GET /jobs/{id}. Times are UTC, `2025-10-28T12:00:00.000000Z`; progress is a percentage."""

    id: str
    status: Status
    stage: str | None
    progress: int
    result: dict[str, Any] | None
    error: str | None
    created_at: str
    updated_at: str
    #: Only where `include` asks for them.
    params: NotRequired[dict[str, Any]]
    outputs: NotRequired[dict[str, Any]]


class StageOfType(TypedDict):
    """A stage of a job type, with its usual duration."""

    name: str
    expected_seconds: float


class JobType(TypedDict):
    """One entry of the response of GET /job-types. params: the JSON schema of the parameters, None without any."""

    type: str
    stages: list[StageOfType]
    params: dict[str, Any] | None


class EndedAttempt(TypedDict):
    """The finished attempt that an event reports."""

    stage: str
    attempt: int
    started_at: str | None
    duration_seconds: float | None


class Event(TypedDict):
    """One entry of a job's history, as GET /jobs/{id}/events returns it."""

    id: str
    event: str
    run: int
    stage: str | None
    at: str
    ended: EndedAttempt | None
    error: str | None
    retry_in_seconds: float | None
    #: A gateway of release 0.1.0 does not send it.
    traceback: NotRequired[str | None]


_JOB = Job.__required_keys__


@dataclass(frozen=True)
class StreamEvent:
    """One message of a job's live stream.

    `data` is an Event, or the fields of a `progress` tick (stage, attempt, progress, at). A tick has no id.
    """

    id: str | None
    name: str
    data: dict[str, Any]


class JobsApi:
    """A connection to one Heimdex API; a context manager.

    api_key: sent as a bearer token.

    The constructor raises Unusable for a URL or a key that cannot be used. The methods raise Unusable when the API
    rejects the request (4xx, with the API's own sentence), and before they send a request when a job's id is not a
    UUID. They raise Unreachable when the API does not answer within ten seconds, returns a 5xx or a response that is
    not Heimdex's, or limits the rate (429).
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        try:
            parsed = httpx.URL(url)
            # Encoded here as a connection encodes it: only that detects an empty or too long label of the host name,
            # and httpx does not turn its UnicodeError into an error of its own.
            parsed.raw_host.decode().encode("idna")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Unusable(f"HEIMDEX_URL={url!r} is not a URL: {error}.") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise Unusable(f"HEIMDEX_URL={url!r} is not an HTTP URL such as {DEFAULT_URL}.")
        if not 0 < (parsed.port or 80) <= 65_535:
            raise Unusable(f"HEIMDEX_URL={url!r} has the port {parsed.port}: use a port from 1 to 65535.")
        if parsed.query or parsed.fragment:
            raise Unusable(f"HEIMDEX_URL={url!r} has a query or a fragment: remove the '?' or '#' and what follows it.")
        headers = {}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
                raise Unusable(
                    "HEIMDEX_API_KEY cannot be sent: it contains a space, a control character or a non-ASCII character."
                )
            headers["Authorization"] = f"Bearer {api_key}"
        # The URL for messages, without user name and password: they are the secret of a proxy in front of the API.
        self.url = str(parsed.copy_with(userinfo=b"")).rstrip("/")
        try:
            self._client = httpx.Client(base_url=parsed, headers=headers, timeout=10)
        except (OSError, ValueError, httpx.InvalidURL) as error:
            raise Unusable(
                f"The HTTP client cannot be set up ({error}): check SSL_CERT_FILE, SSL_CERT_DIR and the proxy's "
                "variables."
            ) from error

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Connect to HEIMDEX_URL, by default http://localhost:8000, with the key HEIMDEX_API_KEY if it is set."""
        return cls(environ.get("HEIMDEX_URL") or DEFAULT_URL, environ.get("HEIMDEX_API_KEY"))

    def submit(
        self, job_type: str, fail_at_stage: str | None = None, callback_url: str | None = None, params: Any = None
    ) -> str:
        """Submit a job with POST /jobs. Returns the new job's id."""
        fields = {"type": job_type, "params": params, "fail_at_stage": fail_at_stage, "callback_url": callback_url}
        body = {name: value for name, value in fields.items() if value is not None}
        return str(self._request("POST", "/jobs", {"job_id"}, body=body)["job_id"])

    def job_types(self) -> list[JobType]:
        """Return the job types that the API knows, from GET /job-types."""
        return cast(list[JobType], self._request("GET", "/job-types", {"job_types"})["job_types"])

    def get(self, job_id: str, include: str | None = None) -> Job:
        """Return the current state of a job, from GET /jobs/{job_id}.

        include: the keys to add, separated by commas, here and below.
        """
        return cast(Job, self._request("GET", _path(job_id), _JOB, query=_query(include=include)))

    def jobs(
        self,
        status: str | None = None,
        job_type: str | None = None,
        limit: int | None = None,
        include: str | None = None,
    ) -> Iterator[Job]:
        """List jobs with GET /jobs, newest first: at most `limit` jobs, or all of them when `limit` is None.

        Each page is requested only when it is needed.
        """
        cursor: str | None = None
        while limit is None or limit > 0:
            size = MAX_PAGE if limit is None else min(limit, MAX_PAGE)
            query = _query(status=status, type=job_type, limit=str(size), cursor=cursor, include=include)
            page = self._request("GET", "/jobs", {"jobs", "next_cursor"}, query=query)
            jobs = cast(list[Job], page["jobs"])
            yield from jobs
            cursor = page["next_cursor"]
            if cursor is None:
                return
            limit = None if limit is None else limit - len(jobs)

    def cancel(self, job_id: str, include: str | None = None) -> Job:
        """Cancel a job with POST /jobs/{job_id}/cancel. Returns its state after the cancel."""
        return cast(Job, self._request("POST", f"{_path(job_id)}/cancel", _JOB, query=_query(include=include)))

    def retry(self, job_id: str, *, from_start: bool = False, include: str | None = None) -> Job:
        """Run a failed or canceled job again with POST /jobs/{job_id}/retry. Returns its state after the retry."""
        query = _query(include=include) | ({"from": "start"} if from_start else {})
        return cast(Job, self._request("POST", f"{_path(job_id)}/retry", _JOB, query=query))

    def events(self, job_id: str) -> list[Event]:
        """Return the history so far, in order, from GET /jobs/{job_id}/events."""
        return cast(list[Event], self._request("GET", f"{_path(job_id)}/events", {"events"})["events"])

    def listen(self, job_id: str, after: str | None = None) -> Iterator[StreamEvent]:
        """Yield the live stream of one connection: the history after the event `after`, then each change as it happens.

        The stream ends after the job's terminal event. It ends earlier, with or without Unreachable, when the
        connection breaks; the caller then reconnects with the id of the last event that it received.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(10, read=SILENCE_SECONDS)
        with (
            self._transport_errors_as_unreachable(),
            self._client.stream("GET", f"{_path(job_id)}/events", headers=headers, timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
                self._raise_for_error(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise Unreachable(f"{self.url} does not stream live events: is it a Heimdex API of this version?")
            for sse in EventSource(response).iter_sse():
                if sse.data:  # a message without data is a keep-alive
                    yield self._stream_event(sse)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _stream_event(self, sse: ServerSentEvent) -> StreamEvent:
        try:
            data = json.loads(sse.data)
        except json.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise Unreachable(f"{self.url} sent an event that is not a JSON object: is it Heimdex?")
        # Not `sse.id`: a tick has no id, and the SSE reader would repeat the id of the event before it.
        return StreamEvent(data.get("id"), sse.event, data)

    def _request(
        self, method: str, path: str, keys: Set[str], *, body: object = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a request and return the JSON object of the response.

        Raises Unreachable when one of `keys` is missing from it.
        """
        # In ASCII: half a character, which UTF-8 does not have, is for the API to refuse.
        content_type = {} if body is None else {"Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body)
        with self._transport_errors_as_unreachable():
            response = self._client.request(method, path, content=sent, params=query, headers=content_type)
        if not response.is_success:
            self._raise_for_error(response)
        content = self._decode_object(response)
        if missing := keys - content.keys():
            raise Unreachable(f"The response of {self.url} lacks {', '.join(sorted(missing))}: is it Heimdex?")
        return content

    def _decode_object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise Unreachable(f"{self.url} returned {response.status_code} without a JSON object: is it Heimdex?")
        return content

    def _raise_for_error(self, response: httpx.Response) -> None:
        content = self._decode_object(response)
        sentence = f"{content.get('detail', response.reason_phrase)} ({response.status_code} from {self.url})"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            sentence += " The key is read from HEIMDEX_API_KEY."
        if response.is_client_error and response.status_code not in _TEMPORARY_STATUSES:
            raise Unusable(sentence)
        raise Unreachable(sentence)

    @contextmanager
    def _transport_errors_as_unreachable(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(
                f"Nothing answers at {self.url} ({reason}): start the system with `{typed()} run`, or set HEIMDEX_URL."
            ) from error


def _query(**fields: str | None) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}


def _path(job_id: str) -> str:
    """Return the path of a job.

    Raises Unusable when the id is not a UUID: other text could form the path of another request, as `` (the list of
    jobs) and `<id>/events` do.
    """
    try:
        well_formed = str(uuid.UUID(job_id)) == job_id.lower()
    except ValueError:
        well_formed = False
    if not well_formed:
        problem = f"{job_id[:80]!r} is not a job id" if job_id else "The job id is empty"
        raise Unusable(f"{problem}: give the UUID that the API returned when the job was submitted.")
    return f"/jobs/{job_id}"
