"""Assembles the HTTP application. `create_app` is the only place where this is done."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from litestar import Litestar, Response, Router
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException, NotFoundException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, Tag
from litestar.static_files import create_static_files_router

from heimdex_contracts.runtime.logs import Logger
from heimdex_gateway import errors, problem
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.middleware import cors
from heimdex_gateway.middleware.request_counts import counting
from heimdex_gateway.openapi import document, request_bodies, responses
from heimdex_gateway.routes import actions, events, health, job_types, jobs

HANDLERS: Final = (
    health.healthz,
    health.readyz,
    health.jobs_options,
    job_types.list_job_types,
    jobs.submit_job,
    jobs.submit_jobs,
    jobs.list_jobs,
    jobs.get_job,
    events.list_events,
    actions.cancel_job,
    actions.retry_job,
    actions.retry_jobs,
)
ASSETS: Final = "/schema/assets"

DESCRIPTION: Final = """\
Submit a media job, and follow it until it completes, fails or is canceled.

An accepted job (202) is never lost, never stuck, and can always be found. A stage runs at least once; its effect on the
job's status is applied exactly once. The status never moves backwards. Every error is JSON with a `detail`.
"""


def create_app(gateway: Gateway, log: Logger, counters: Any) -> Litestar:
    """Build the application for this gateway. It opens and closes none of the gateway's connections."""
    known = request_bodies.Known(gateway.pipelines, gateway.callbacks.enabled)
    app = Litestar.from_config(
        AppConfig(
            route_handlers=[
                *HANDLERS,
                create_static_files_router(
                    path=ASSETS, directories=[swagger_ui()], include_in_schema=False, send_as_attachment=False
                ),
            ],
            state=State({"gateway": gateway}),
            middleware=[counting(counters), *gateway.access.middleware],
            cors_config=gateway.access.cors,
            exception_handlers={
                problem.Problem: errors.on_problem,
                **dict.fromkeys(errors.ERRORS, errors.on_error),
                HTTPException: errors.on_http_exception,
                Exception: errors.on_defect(log),
            },
            openapi_config=OpenAPIConfig(
                title="Heimdex jobs",
                version=gateway.health.version,
                description=DESCRIPTION,
                openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, after_request=_no_page),
                tags=[
                    Tag("jobs", "Submit and follow jobs."),
                    Tag("operations", "For load balancers and operators."),
                ],
                components=Components(security_schemes={responses.SCHEME: responses.KEY}),
                security=[{responses.SCHEME: []}] if gateway.access.keys else None,
                render_plugins=[
                    # Served by the gateway, so that the page works without access to the internet.
                    document.FinishedPage(
                        known,
                        js_url=f"{ASSETS}/swagger-ui-bundle.js",
                        css_url=f"{ASSETS}/swagger-ui.css",
                        standalone_preset_js_url=f"{ASSETS}/swagger-ui-standalone-preset.js",
                        favicon=f'<link rel="icon" href="{ASSETS}/favicon-32x32.png">',
                        path="/swagger",
                    ),
                    document.FinishedJson(known, path="/openapi.json"),
                ],
            ),
            logging_config=None,
            debug=False,
        )
    )
    if gateway.access.cors is not None:
        app.asgi_handler = cors.explained(app.asgi_handler)
    return app


def _no_page(response: Response[Any]) -> Response[Any]:
    """Replace the framework's HTML page for an unknown path below /schema: NotFoundException makes it our JSON 404."""
    if response.status_code == 404:
        raise NotFoundException
    return response


def swagger_ui() -> Path:
    """The folder in which the package swagger-ui-py stores the files of Swagger UI. None of its code is imported.

    Raises RuntimeError if the package is not installed.
    """
    spec = find_spec("swagger_ui")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package swagger-ui-py is not installed: install heimdex-jobs[gateway]")
    return Path(spec.origin).parent / "static"
