"""The OpenAPI document that is served: the framework's own, completed with what the framework leaves out."""

from typing import Any

import msgspec
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin

from heimdex_contracts.job_object import JobObject
from heimdex_gateway.openapi import callbacks, examples, postprocess, request_bodies
from heimdex_gateway.problem import ErrorBody
from heimdex_gateway.schemas.events import EventList
from heimdex_gateway.schemas.health import Health, Readiness
from heimdex_gateway.schemas.job_list import JobList
from heimdex_gateway.schemas.job_types import JobTypes
from heimdex_gateway.schemas.jobs import JobAccepted, JobsAccepted, JobsRetried


def finish(document: dict[str, Any], known: request_bodies.Known) -> dict[str, Any]:
    """Add, in place, what the framework leaves out: nulls in examples, formats and enums of our structs, headers.

    Can be repeated on the same document. Returns the document.
    """
    _, components = msgspec.json.schema_components(
        [
            JobAccepted,
            JobsAccepted,
            JobsRetried,
            JobObject,
            JobList,
            JobTypes,
            EventList,
            ErrorBody,
            Health,
            Readiness,
        ],
        ref_template="#/components/schemas/{name}",
    )
    document["components"]["schemas"] = components
    request_bodies.complete(document, known)
    answers = examples.responses(known.pipelines)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for response in operation["responses"].values():
            for name, example in response["content"]["application/json"].get("examples", {}).items():
                example.pop("id", None)
                if name in answers:
                    example["value"] = answers[name]
    for path in ("/jobs", "/jobs/batch"):
        refused = document["paths"][path]["post"]["responses"]["422"]["content"]["application/json"]["examples"]
        refused["error"]["value"]["detail"] = examples.wrong_stage(known.pipelines)
    events = document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    events["text/event-stream"] = {"schema": {"type": "string"}, "example": examples.stream(known.pipelines)}
    document["paths"]["/jobs"]["post"]["responses"]["202"]["headers"] = {
        "Location": {"description": "the URL of the job", "schema": {"type": "string"}}
    }
    # The framework adds a 400 for a malformed id, but the routes return 404: such a job does not exist.
    for path in document["paths"].values():
        for operation in path.values():
            if operation["operationId"] not in {"submitJob", "submitJobs"}:
                operation["responses"].pop("400", None)
    postprocess.add(document)
    if known.callbacks:
        callbacks.add(document)
    return document


class FinishedJson(JsonRenderPlugin):
    """Serves the finished document at /schema/openapi.json."""

    def __init__(self, known: request_bodies.Known, **options: Any) -> None:
        super().__init__(**options)
        self._known = known

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        """Render the finished document."""
        return super().render(request, finish(openapi_schema, self._known))


class FinishedPage(SwaggerRenderPlugin):
    """Serves Swagger UI at /schema, where a person can try the API."""

    def __init__(self, known: request_bodies.Known, **options: Any) -> None:
        super().__init__(**options)
        self._known = known

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        """Render the page with the finished document."""
        return super().render(request, finish(openapi_schema, self._known))
