"""A job's history, as one answer or as a live stream."""

from contextlib import AsyncExitStack
from typing import Annotated

from litestar import Response, get
from litestar.params import Parameter
from litestar.response import Stream

from heimdex_gateway.errors import Problem
from heimdex_gateway.jobs import history
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_gateway.openapi import responses
from heimdex_gateway.routes import sse
from heimdex_gateway.routes.jobs import JobId
from heimdex_gateway.routes.request import (
    NOT_FOUND,
    AnyRequest,
    check_query,
    encoded,
    gateway_of,
    in_time,
    job_id_of,
    tenant_of,
)
from heimdex_gateway.schemas import events


@get(
    "/jobs/{job_id:str}/events",
    operation_id="listJobEvents",
    summary="What happened to a job",
    tags=["jobs"],
    responses=responses.EVENTS_ANSWERS,
)
async def list_events(
    request: AnyRequest,
    job_id: JobId,
    last_event_id: Annotated[
        str | None,
        Parameter(header="Last-Event-ID", required=False, description="resume the live stream after this event"),
    ] = None,
) -> Response[bytes] | Stream:
    """Every hand-over and every failed attempt. With `Accept: text/event-stream`: live, history first."""
    check_query(request)
    gateway, known = gateway_of(request), job_id_of(job_id)

    async def told() -> Response[bytes] | Stream:
        if await gateway.status.job(known, tenant_of(request)) is None:
            raise Problem(404, NOT_FOUND)
        if sse.is_wanted(request):
            source = AsyncExitStack()
            # What stands in the way must be known before the head is sent, which says 200.
            pieces = await source.enter_async_context(history.live(gateway, known, history.parse_id(last_event_id)))
            return sse.EventStream(pieces, source)
        rows = await history.history(gateway, known)
        return encoded(events.EventList([events.event_object(row) for row in rows]))

    try:
        return await in_time(told())
    except DatabaseUnavailable:
        raise Problem(500, "Postgres cannot be reached, and the history is read from it. Try again.") from None
