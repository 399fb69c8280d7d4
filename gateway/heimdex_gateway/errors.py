"""Error responses. Each is JSON with a `detail`: a sentence that describes the problem and what to do about it."""

from typing import Any, Final, NamedTuple

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from heimdex_callbacks.validation import CallbackUrlRefused
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.publisher import Refused
from heimdex_contracts.runtime.logs import Logger
from heimdex_gateway.jobs.admission import RETRY_AFTER_SECONDS, QueueFull
from heimdex_gateway.jobs.change import Conflict
from heimdex_gateway.jobs.idempotency import KeyReused
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_gateway.jobs.status import JobNotFound, StateUnavailable
from heimdex_gateway.problem import Problem

INTERNAL: Final = (
    "Internal error; the gateway's log has the details. Try again, and report it to the operator if it persists."
)

BODY_TOO_LARGE: Final = "The body is over 1 MiB. The params of a job may have 64 KiB; send fewer jobs in one batch."


def answer(status: int, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> Response[bytes]:
    """Build the response to an error. `extra` holds further keys of its body, beside `detail`."""
    return Response(
        content=msgspec.json.encode({"detail": detail, **extra}),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )


class ErrorResponse(NamedTuple):
    """The response to an error that a use case raises. detail: None for the error's own text."""

    status: int
    detail: str | None = None
    retry_after_seconds: int | None = None
    field: str | None = None


#: Every error that a use case raises for its caller, with its response. The errors in this table are part of the API.
ERRORS: Final[dict[type[Exception], ErrorResponse]] = {
    JobNotFound: ErrorResponse(404),
    Conflict: ErrorResponse(409),
    KeyReused: ErrorResponse(422, field="Idempotency-Key"),
    CallbackUrlRefused: ErrorResponse(422),
    StateUnavailable: ErrorResponse(500),
    DatabaseUnavailable: ErrorResponse(500, "Postgres cannot be reached. Try again in a few seconds."),
    BrokerUnavailable: ErrorResponse(
        500, "NATS did not confirm in time, so the change may or may not be stored. Try again in a few seconds."
    ),
    TimeoutError: ErrorResponse(500, "The request could not be processed in time. Try again in a few seconds."),
    QueueFull: ErrorResponse(503, retry_after_seconds=RETRY_AFTER_SECONDS),
    Refused: ErrorResponse(503, retry_after_seconds=RETRY_AFTER_SECONDS),
}


def on_error(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Return the response to an error in ERRORS, or to a subclass of one."""
    response = next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
    headers = None if response.retry_after_seconds is None else {"Retry-After": str(response.retry_after_seconds)}
    # An error about one part of the request may know which part it is.
    field = getattr(error, "field", response.field)
    return answer(response.status, response.detail or str(error), headers, **({"field": field} if field else {}))


def on_problem(_: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    """Return the response to a request that a route or a schema refuses."""
    return answer(problem.status, problem.detail, problem.headers, **problem.extra)


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Return the response to an error that the framework raises, such as an unknown path or a method not allowed."""
    path = request.scope["path"][:200]
    match error:
        case RequestEntityTooLarge():
            # The rest of the body is not read, so the connection closes after this response.
            return answer(413, BODY_TOO_LARGE, {"Connection": "close"})
        case NotFoundException():
            return answer(404, f"There is nothing at {path}; /schema lists the paths.")
        case MethodNotAllowedException():
            allowed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("allow", "")
            hint = f"; allowed: {allowed}" if allowed else ""
            return answer(405, f"{request.method} is not allowed on {path}{hint}.", error.headers)
    return answer(error.status_code, error.detail or "The request cannot be processed.", error.headers)


def on_defect(log: Logger) -> Any:
    """Build the handler for every other exception: it returns a 500, and logs the traceback."""

    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        log.error("request_broken", method=request.method, path=request.scope["path"], exc_info=error)
        return answer(500, INTERNAL)

    return handle
