"""The OpenAPI description of the bodies and queries that the routes read themselves."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, Parameter, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from heimdex_gateway.jobs import repository
from heimdex_gateway.openapi.callbacks import EXAMPLE_URL, url_schema
from heimdex_gateway.schemas import job_list
from heimdex_gateway.schemas.job_request import BatchBody

#: A type outside the enum is not described by the schema: a value that merely looks like a type is refused.
OF_TYPE: Final = "only jobs of this type, or of one that the gateway does not have any more but that has jobs"


@dataclass(frozen=True)
class Known:
    """What the schemas depend on: a gateway's job types and their stages, and whether callbacks are enabled."""

    types: tuple[str, ...]
    stages: tuple[str, ...]
    callbacks: bool


def complete(document: dict[str, Any], known: Known) -> None:
    """Add the schemas that depend on `known` to the document, in place. This is idempotent."""
    # Named, not inline, so that a generated client uses these names.
    document["components"]["schemas"] |= schemas(known)
    paths = document["paths"]
    for path, name in (("/jobs", "JobRequest"), ("/jobs/batch", "BatchRequest")):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        body["schema"] = {"$ref": f"#/components/schemas/{name}"}
        if known.callbacks and name == "JobRequest":
            value = {"type": "mock_process", "callback_url": EXAMPLE_URL}
            body["examples"]["called_back"] = {"summary": "with a callback when the job is finished", "value": value}
    for operation in (paths["/jobs"]["get"], paths["/jobs/retry"]["post"]):
        for parameter in operation["parameters"]:
            if parameter["name"] == "type":
                parameter["schema"]["enum"] = list(known.types)


def schemas(known: Known) -> dict[str, Any]:
    """Build the schemas JobRequest and BatchRequest from their structs, with this gateway's job types and stages.

    `callback_url` is described according to whether callbacks are enabled.
    """
    _, components = msgspec.json.schema_components([BatchBody], ref_template="#/components/schemas/{name}")
    job, batch = components["JobBody"] | {"title": "JobRequest"}, components["BatchBody"] | {"title": "BatchRequest"}
    batch["properties"]["jobs"]["items"] = {"$ref": "#/components/schemas/JobRequest"}
    fields = job["properties"]
    fields["type"]["enum"] = list(known.types)
    for option in fields["fail_at_stage"]["anyOf"]:
        if option["type"] == "string":
            option["enum"] = list(known.stages)
    fields["callback_url"] = url_schema(enabled=known.callbacks).to_schema()
    job["not"] = {
        "required": ["run_at", "delay_seconds"],
        "properties": {"run_at": {"type": "string"}, "delay_seconds": {"type": "number"}},
    }
    return {"JobRequest": job, "BatchRequest": batch}


def _body(description: str, schema: Schema, examples: dict[str, Example]) -> RequestBody:
    media = OpenAPIMediaType(schema=schema, examples=dict(examples))
    return RequestBody(required=True, description=description, content={"application/json": media})


@dataclass
class SubmitOperation(Operation):
    """The body of POST /jobs. The route reads it itself, so Litestar cannot describe it. `complete` adds the schema."""

    def __post_init__(self) -> None:
        self.request_body = _body(
            "The job to run.",
            Schema(type=OpenAPIType.OBJECT),
            {
                "completes": Example(summary="completes", value={"type": "mock_process"}),
                "fails": Example(
                    summary="fails at analyzing, after its retries",
                    value={"type": "mock_process", "fail_at_stage": "analyzing"},
                ),
                "later": Example(summary="starts in a minute", value={"type": "mock_process", "delay_seconds": 60}),
            },
        )


@dataclass
class BatchOperation(Operation):
    """The body of POST /jobs/batch, as SubmitOperation. `complete` adds the schema."""

    def __post_init__(self) -> None:
        value = {"jobs": [{"type": "mock_process"}, {"type": "mock_process", "delay_seconds": 60}]}
        self.request_body = _body(
            "The jobs to run.", Schema(type=OpenAPIType.OBJECT), {"two": Example(summary="two jobs", value=value)}
        )


@dataclass
class RetryManyOperation(Operation):
    """The query of POST /jobs/retry. The route reads it itself, so Litestar cannot describe it."""

    def __post_init__(self) -> None:
        status = Schema(type=OpenAPIType.STRING, enum=["failed", "canceled"])
        self.parameters = [
            Parameter(name="status", param_in="query", required=True, description="which jobs to retry", schema=status),
            _query("type", OF_TYPE, Schema(type=OpenAPIType.STRING)),
        ]


@dataclass
class ListOperation(Operation):
    """The query of GET /jobs. The route reads it itself, so Litestar cannot describe it."""

    def __post_init__(self) -> None:
        cursor = Schema(type=OpenAPIType.STRING, pattern=job_list.CURSOR)
        time = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME)
        limit = Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=job_list.MAX_LIMIT, default=job_list.DEFAULT_LIMIT)
        self.parameters = [
            _query(
                "status", "only jobs with this status", Schema(type=OpenAPIType.STRING, enum=list(repository.STATUSES))
            ),
            _query("type", OF_TYPE, Schema(type=OpenAPIType.STRING)),
            _query("created_after", "only jobs created later than this", time),
            _query("created_before", "only jobs created earlier than this", time),
            _query("limit", "the maximum number of jobs in a page", limit),
            _query("cursor", "the `next_cursor` of the previous page", cursor),
        ]


def _query(name: str, description: str, schema: Schema) -> Parameter:
    return Parameter(name=name, param_in="query", required=False, description=description, schema=schema)
