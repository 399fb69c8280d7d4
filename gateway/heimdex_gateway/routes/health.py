"""For load balancers and operators: is it alive, can it work."""

from typing import Final

from litestar import HttpMethod, Response, get, route
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from heimdex_gateway.dependencies import gateway_of
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_gateway.middleware.open_routes import OPEN
from heimdex_gateway.routes.request import JSON, AnyRequest
from heimdex_gateway.schemas.health import DependencyState, Health, Readiness

_HEALTH: Final = {
    "ok": True,
    "service": "heimdex-api",
    "version": "0.1.0",
    "env": "local",
    "started_at": "2025-10-28T12:00:00.000000Z",
}
_CONNECTED: Final = {"ok": True, "detail": "connected"}
_READY: Final = {"ok": True, "detail": "ready", "nats": _CONNECTED, "postgres": _CONNECTED}
_NOT_READY: Final = {
    "ok": False,
    "detail": "NATS cannot be used now.",
    "nats": {"ok": False, "detail": "not connected"},
    "postgres": _CONNECTED,
}
_HEALTH_ANSWERS: Final = {
    200: ResponseSpec(
        Health,
        description="It is alive.",
        generate_examples=False,
        examples=[Example(id="alive", value=_HEALTH)],
    )
}
_READY_ANSWERS: Final = {
    200: ResponseSpec(
        Readiness,
        description="It can.",
        generate_examples=False,
        examples=[Example(id="ready", value=_READY)],
    ),
    503: ResponseSpec(
        Readiness,
        description="A dependency is away; each says its state.",
        generate_examples=False,
        examples=[Example(id="not_ready", value=_NOT_READY)],
    ),
}


@get(
    "/healthz",
    operation_id="health",
    summary="Is the process alive?",
    tags=["operations"],
    sync_to_thread=False,
    responses=_HEALTH_ANSWERS,
    opt={OPEN: True},
)
def healthz(request: AnyRequest) -> Health:
    """Liveness only: answers while NATS and Postgres are down."""
    gateway = gateway_of(request)
    return gateway.health


@get(
    "/readyz",
    operation_id="ready",
    summary="Can it do its work now?",
    tags=["operations"],
    responses=_READY_ANSWERS,
    opt={OPEN: True},
)
async def readyz(request: AnyRequest) -> Response[Readiness]:
    """200 when NATS and Postgres can be used, 503 otherwise; names each one's state."""
    gateway = gateway_of(request)
    nats = DependencyState(True, "connected")
    if not gateway.broker.connected:
        nats = DependencyState(False, "not connected")
    elif gateway.topology.problem is not None:
        nats = DependencyState(False, gateway.topology.problem)
    elif not gateway.topology.ready.is_set():
        nats = DependencyState(False, "the streams are not there yet")
    elif gateway.installation.problem is not None:
        nats = DependencyState(False, gateway.installation.problem)
    elif not gateway.installation.agreed:
        nats = DependencyState(False, "whose the streams are is not known yet")
    postgres = DependencyState(True, "connected")
    try:
        await gateway.database.check()
    except DatabaseUnavailable as error:
        postgres = DependencyState(False, str(error))
    away = [name for name, state in (("NATS", nats), ("Postgres", postgres)) if not state.ok]
    detail = "ready" if not away else f"{' and '.join(away)} cannot be used now."
    return Response(Readiness(not away, detail, nats, postgres), status_code=503 if away else 200, media_type=JSON)


@route(
    "/jobs",
    http_method=HttpMethod.OPTIONS,
    include_in_schema=False,
    status_code=204,
    sync_to_thread=False,
    opt={OPEN: True},
)
def jobs_options() -> Response[None]:
    """The framework's own answer would name the method that was registered first, and not the other."""
    return Response(None, status_code=204, headers={"Allow": "GET, OPTIONS, POST"})
