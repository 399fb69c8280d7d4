"""The routes for load balancers and operators: liveness and readiness."""

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
        description="The process is alive.",
        generate_examples=False,
        examples=[Example(id="alive", value=_HEALTH)],
    )
}
_READY_ANSWERS: Final = {
    200: ResponseSpec(
        Readiness,
        description="The gateway is ready.",
        generate_examples=False,
        examples=[Example(id="ready", value=_READY)],
    ),
    503: ResponseSpec(
        Readiness,
        description="The gateway is not ready; `nats` and `postgres` give the state of each dependency.",
        generate_examples=False,
        examples=[Example(id="not_ready", value=_NOT_READY)],
    ),
}


@get(
    "/healthz",
    operation_id="health",
    summary="Check that the process is alive",
    tags=["operations"],
    sync_to_thread=False,
    responses=_HEALTH_ANSWERS,
    opt={OPEN: True},
)
def healthz(request: AnyRequest) -> Health:
    """Checks liveness only: it succeeds while NATS and Postgres are down."""
    gateway = gateway_of(request)
    return gateway.health


@get(
    "/readyz",
    operation_id="ready",
    summary="Check that the gateway is ready",
    tags=["operations"],
    responses=_READY_ANSWERS,
    opt={OPEN: True},
)
async def readyz(request: AnyRequest) -> Response[Readiness]:
    """Returns 200 if NATS and Postgres can be used, else 503. The body gives the state of each."""
    gateway = gateway_of(request)
    nats = DependencyState(True, "connected")
    if not gateway.broker.connected:
        nats = DependencyState(False, "not connected")
    elif gateway.topology.problem is not None:
        nats = DependencyState(False, gateway.topology.problem)
    elif not gateway.topology.ready.is_set():
        nats = DependencyState(False, "the streams do not exist yet")
    elif gateway.installation.problem is not None:
        nats = DependencyState(False, gateway.installation.problem)
    elif not gateway.installation.agreed:
        nats = DependencyState(False, "the installation that owns the streams is not known yet")
    postgres = DependencyState(True, "connected")
    try:
        await gateway.database.check()
    except DatabaseUnavailable as error:
        postgres = DependencyState(False, str(error))
    unavailable = [name for name, state in (("NATS", nats), ("Postgres", postgres)) if not state.ok]
    detail = "ready" if not unavailable else f"{' and '.join(unavailable)} cannot be used now."
    return Response(
        Readiness(not unavailable, detail, nats, postgres), status_code=503 if unavailable else 200, media_type=JSON
    )


@route(
    "/jobs",
    http_method=HttpMethod.OPTIONS,
    include_in_schema=False,
    status_code=204,
    sync_to_thread=False,
    opt={OPEN: True},
)
def jobs_options() -> Response[None]:
    """Returns `Allow` with both methods of /jobs. The framework's own response lists only the one registered first."""
    return Response(None, status_code=204, headers={"Allow": "GET, OPTIONS, POST"})
