"""The OpenAPI document that is served: the framework's own, completed with what the framework leaves out."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin

from heimdex_contracts.job_object import JobObject
from heimdex_gateway.openapi import callbacks, postprocess, request_bodies
from heimdex_gateway.openapi.examples import (
    AGAIN,
    CANCELED,
    COMPLETED,
    EVENTS,
    FAILED,
    PROCESSING,
    STREAM_EXAMPLE,
)
from heimdex_gateway.problem import ErrorBody
from heimdex_gateway.schemas.events import EventList
from heimdex_gateway.schemas.health import Health, Readiness
from heimdex_gateway.schemas.job_list import JobList
from heimdex_gateway.schemas.jobs import JobAccepted, JobsAccepted, JobsRetried

_WITH_NULLS: Final[dict[str, Any]] = {
    "processing": PROCESSING,
    "completed": COMPLETED,
    "failed": FAILED,
    "canceled": CANCELED,
    "again": AGAIN,
    "history": EVENTS,
    "page": {"jobs": [COMPLETED, FAILED], "next_cursor": None},
}


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
            EventList,
            ErrorBody,
            Health,
            Readiness,
        ],
        ref_template="#/components/schemas/{name}",
    )
    document["components"]["schemas"] = components
    request_bodies.complete(document, known)
    for name, example in (pair for examples in _examples(document["paths"]) for pair in examples.items()):
        example.pop("id", None)
        example["value"] = _WITH_NULLS.get(name, example["value"])
    events = document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    events["text/event-stream"] = {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}
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


def _examples(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "examples" and isinstance(value, dict):
                yield value
            else:
                yield from _examples(value)


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
