"""What the routes share: encoding an answer, reading a JSON body, turning our errors into answers."""

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from heimdex_contracts import messages
from heimdex_gateway.jobs.status import JobNotFound
from heimdex_gateway.problem import Problem
from heimdex_gateway.schemas import job_list

_json: Final = msgspec.json.Encoder()
JSON: Final = "application/json"
#: Of a body that is too large.
MAX_DISCARDED_BYTES: Final = 32 * 1024 * 1024
MAX_DISCARDED_SECONDS: Final = 2.0
#: Told to nobody, and counted: the caller has closed the connection before the answer.
GONE: Final = 499
#: The contract is an answer within 5 s.
MAX_SECONDS: Final = 4.5

AnyRequest = Request[Any, Any, Any]
_T = TypeVar("_T")


def encoded(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """As JSON."""
    return Response(_json.encode(body), status_code=status, media_type=JSON, headers=headers)


def job_id_of(text: str) -> str:
    """In lower case. Raises JobNotFound for what is not a job id."""
    if not messages.is_job_id(text):
        raise JobNotFound
    return text.lower()


async def in_time(work: Awaitable[_T], waiting_seconds: float = 0.0) -> _T:
    """Await an answer for as long as a caller may wait. Raises TimeoutError, and what the work raises."""
    async with asyncio.timeout(MAX_SECONDS + waiting_seconds):
        return await work


async def while_there(request: AnyRequest, work: Coroutine[Any, Any, _T]) -> _T:
    """Await what takes long, for as long as there is somebody to tell. Raises Problem when the caller has gone."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    both = (working, leaving)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem(GONE, "The caller has gone.")
    finally:
        for task in both:
            # Again, should it go on: in Python 3.11 `wait_for` swallows a cancel that comes together with its result.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1.0)


async def _gone(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def json_body(request: AnyRequest) -> bytes:
    """The body of a request that says it is JSON. Raises Problem 415 for another; the framework's 413 for a large."""
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type != JSON:
        length = request.headers.get("content-length")
        if not header and length in {None, "0"} and "transfer-encoding" not in request.headers:
            return b""
        given = f"not as {content_type[:100]}" if header else "which the Content-Type header must say"
        raise Problem(415, f"Send the body as application/json, {given}.")
    try:
        return await request.body()
    except RequestEntityTooLarge:
        await _discard_rest(request)
        raise


async def _discard_rest(request: AnyRequest) -> None:
    """Read some of what is still coming: closing on unread data would reset the connection, and the answer be lost."""
    left = MAX_DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_DISCARDED_SECONDS):
            while left > 0:
                event = await request.receive()
                if event["type"] != "http.request" or not event.get("more_body"):
                    return
                left -= len(event["body"])


def check_query(request: AnyRequest, *known: str) -> None:
    """Raises Problem 422 for a parameter that is not known here, or is given twice: a misspelt one is no default."""
    if not request.scope["query_string"]:
        return
    for name in job_list.single(request.query_params.multi_items()):
        if name not in known:
            allowed = f"the parameters are {', '.join(map(repr, known))}" if known else "there are none"
            raise Problem(422, f"There is no parameter {name[:60]!r}; {allowed}.", field=name[:100])
