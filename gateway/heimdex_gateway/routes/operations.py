"""For load balancers and operators: is it alive, can it work."""

from litestar import HttpMethod, Response, get, route
from litestar.openapi.datastructures import ResponseSpec

from heimdex_gateway.database import DatabaseUnavailable
from heimdex_gateway.keys import OPEN
from heimdex_gateway.routes.answers import JSON, AnyRequest, gateway_of
from heimdex_gateway.schemas import DependencyState, Health, Readiness


@get(
    "/healthz",
    operation_id="health",
    summary="Is the process alive?",
    tags=["operations"],
    sync_to_thread=False,
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
    responses={503: ResponseSpec(Readiness, description="A dependency is away; each says its state.")},
    opt={OPEN: True},
)
async def readyz(request: AnyRequest) -> Response[Readiness]:
    """200 when NATS and Postgres can be used, 503 otherwise; names each one's state."""
    gateway = gateway_of(request)
    nats = DependencyState(True, "connected")
    if not gateway.broker.connected:
        nats = DependencyState(False, "not connected")
    elif not gateway.topology.ready.is_set():
        nats = DependencyState(False, "the streams are not there yet")
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
