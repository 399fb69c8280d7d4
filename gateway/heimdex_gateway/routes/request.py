"""Functions that the routes share: they read a request's parts, limit its time, and encode its response."""

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from heimdex_contracts import messages
from heimdex_gateway.dependencies import gateway_of, tenant_of
from heimdex_gateway.jobs.status import JobNotFound
from heimdex_gateway.problem import Problem
from heimdex_gateway.schemas import job_list

_json: Final = msgspec.json.Encoder()
JSON: Final = "application/json"
#: How much of a body that is too large is read and discarded, and for how long.
MAX_DISCARDED_BYTES: Final = 32 * 1024 * 1024
MAX_DISCARDED_SECONDS: Final = 2.0
#: The status that is counted when the client has closed the connection before the response. It is never sent.
CLIENT_CLOSED_REQUEST: Final = 499

AnyRequest = Request[Any, Any, Any]
_T = TypeVar("_T")


def encoded(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Build a response with `body` encoded as JSON."""
    return Response(_json.encode(body), status_code=status, media_type=JSON, headers=headers)


def job_id_of(text: str) -> str:
    """Parse a job id and return it in lower case. Raises JobNotFound if `text` is not a job id."""
    if not messages.is_job_id(text):
        raise JobNotFound
    return text.lower()


async def in_time(request: AnyRequest, work: Awaitable[_T], waiting_seconds: float = 0.0) -> _T:
    """Await `work` for the gateway's `max_seconds` and `waiting_seconds` at most.

    Raises TimeoutError, and what `work` raises.
    """
    async with asyncio.timeout(gateway_of(request).max_seconds + waiting_seconds):
        return await work


async def while_connected(request: AnyRequest, work: Coroutine[Any, Any, _T]) -> _T:
    """Await long-running `work` while the client is connected. Raises Problem 499 when the client disconnects."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_disconnect(request))
    both = (working, leaving)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem(CLIENT_CLOSED_REQUEST, "The client closed the connection.")
    finally:
        for task in both:
            # Repeated, because in Python 3.11 `wait_for` swallows a cancellation that arrives together with its result.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1.0)


async def _disconnect(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def json_body(request: AnyRequest) -> bytes:
    """Read the body of a request whose content type is JSON.

    Raises Problem 415 for another content type, and RequestEntityTooLarge (413) for a body over the route's limit.
    """
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type != JSON:
        length = request.headers.get("content-length")
        if not header and length in {None, "0"} and "transfer-encoding" not in request.headers:
            return b""
        given = f"not as {content_type[:100]}" if header else "with this Content-Type header"
        raise Problem(415, f"Send the body as application/json, {given}.")
    try:
        return await request.body()
    except RequestEntityTooLarge:
        await _discard_rest(request)
        raise


async def _discard_rest(request: AnyRequest) -> None:
    """Read and discard part of the remaining body.

    Closing the connection with unread data would reset it, and the client would lose the response.
    """
    left = MAX_DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_DISCARDED_SECONDS):
            while left > 0:
                event = await request.receive()
                if event["type"] != "http.request" or not event.get("more_body"):
                    return
                left -= len(event["body"])


def check_query(request: AnyRequest, *known: str) -> None:
    """Raises Problem 422 if a query parameter is unknown or repeated.

    So a misspelt parameter is an error, and is not silently replaced by its default.
    """
    if not request.scope["query_string"]:
        return
    for name in job_list.single(request.query_params.multi_items()):
        if name not in known:
            allowed = f"the parameters are {', '.join(map(repr, known))}" if known else "the operation has none"
            raise Problem(422, f"There is no parameter {name[:60]!r}; {allowed}.", field=name[:100])


async def check_type(request: AnyRequest, job_type: str | None) -> None:
    """Raises Problem 422 if the gateway does not have this job type and the tenant has no jobs of it.

    So a misspelt type is an error, and the jobs of a type that was removed can still be listed and retried. Raises
    StateUnavailable if Postgres cannot be asked.
    """
    gateway = gateway_of(request)
    if job_type is None or job_type in gateway.pipelines.types:
        return
    if not await in_time(request, gateway.status.has_jobs(job_type, tenant_of(request))):
        raise job_list.unknown_type(job_type, gateway.pipelines)
