"""The route that returns a job's history, as one JSON response or as a live stream of server-sent events."""

from contextlib import AsyncExitStack
from typing import Annotated

from litestar import Response, get
from litestar.params import HeaderParameter
from litestar.response import Stream

from heimdex_gateway.dependencies import gateway_of, tenant_of
from heimdex_gateway.jobs.history import parse_id
from heimdex_gateway.jobs.status import JobNotFound
from heimdex_gateway.openapi import responses
from heimdex_gateway.routes import sse
from heimdex_gateway.routes.parameters import JobId
from heimdex_gateway.routes.request import (
    AnyRequest,
    check_query,
    encoded,
    in_time,
    job_id_of,
)
from heimdex_gateway.schemas import events


@get(
    "/jobs/{job_id:str}/events",
    operation_id="listJobEvents",
    summary="List the events of a job",
    tags=["jobs"],
    responses=responses.EVENTS_ANSWERS,
)
async def list_events(
    request: AnyRequest,
    job_id: JobId,
    last_event_id: Annotated[
        str | None,
        HeaderParameter(name="Last-Event-ID", required=False, description="resume the live stream after this event"),
    ] = None,
) -> Response[bytes] | Stream:
    """Returns every hand-over and every attempt that failed or was lost.

    With `Accept: text/event-stream` the response is a live stream that begins with the history.
    """
    check_query(request)
    gateway, parsed_id = gateway_of(request), job_id_of(job_id)

    async def answer() -> Response[bytes] | Stream:
        if await gateway.status.job(parsed_id, tenant_of(request)) is None:
            raise JobNotFound
        if sse.prefers_event_stream(request.headers.get("accept", "")):
            source = AsyncExitStack()
            # Entered here, so that an error is raised before the response head (200) is sent.
            entries = await source.enter_async_context(gateway.history.live(parsed_id, parse_id(last_event_id)))
            return sse.EventStream(sse.frames(entries), source)
        rows = await gateway.history.entries(parsed_id)
        return encoded(events.EventList([events.event_object(row) for row in rows]))

    return await in_time(request, answer())
