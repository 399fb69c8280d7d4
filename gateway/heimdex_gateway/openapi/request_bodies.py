"""The OpenAPI description of the bodies and queries that the routes read themselves."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Parameter, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from heimdex_contracts.job_object import INCLUDED
from heimdex_contracts.pipelines import Pipelines
from heimdex_gateway.jobs import repository
from heimdex_gateway.openapi import job_types
from heimdex_gateway.openapi.callbacks import EXAMPLE_URL, url_schema
from heimdex_gateway.schemas import job_list
from heimdex_gateway.schemas.job_request import BatchBody

#: A type outside the enum is not described by the schema: a value that merely looks like a type is refused.
OF_TYPE: Final = "only jobs of this type, or of one that the gateway does not have any more but that has jobs"
INCLUDE: Final = "keys to add to each job, separated by a comma: `params`, `outputs`"
#: The words of `include` in any order.
INCLUDE_PATTERN: Final = "^({0}|{1}|{0},{1}|{1},{0})$".format(*INCLUDED)


@dataclass(frozen=True)
class Known:
    """What the schemas and the examples depend on: a gateway's job types, and whether callbacks are enabled."""

    pipelines: Pipelines
    callbacks: bool


def complete(document: dict[str, Any], known: Known) -> None:
    """Add the schemas that depend on `known` to the document, in place. This is idempotent."""
    # Named, not inline, so that a generated client uses these names.
    document["components"]["schemas"] |= schemas(known)
    paths = document["paths"]
    for path, name in (("/jobs", "JobRequest"), ("/jobs/batch", "BatchRequest")):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        body["schema"] = {"$ref": f"#/components/schemas/{name}"}
        examples = _examples(known) if name == "JobRequest" else _batch_examples(known)
        if examples:
            body["examples"] = examples
    for operation in (paths["/jobs"]["get"], paths["/jobs/retry"]["post"]):
        for parameter in operation["parameters"]:
            if parameter["name"] == "type":
                parameter["schema"]["enum"] = list(known.pipelines.types)


def schemas(known: Known) -> dict[str, Any]:
    """Build the schemas JobRequest and BatchRequest from their structs, and those of this gateway's job types.

    `callback_url` is described according to whether callbacks are enabled.
    """
    _, components = msgspec.json.schema_components([BatchBody], ref_template="#/components/schemas/{name}")
    job, batch = components["JobBody"], components["BatchBody"] | {"title": "BatchRequest"}
    batch["properties"]["jobs"]["items"] = {"$ref": "#/components/schemas/JobRequest"}
    job["properties"]["callback_url"] = url_schema(enabled=known.callbacks).to_schema()
    job["not"] = {
        "required": ["run_at", "delay_seconds"],
        "properties": {"run_at": {"type": "string"}, "delay_seconds": {"type": "number"}},
    }
    built = {"BatchRequest": batch}
    job_types.add(built, job, known.pipelines)
    return built


def _examples(known: Known) -> dict[str, Any]:
    """Build the examples of POST /jobs, of the first job type; and one of each further type that has params."""
    examples: dict[str, Any] = {}
    first = known.pipelines.by_type[known.pipelines.types[0]]
    if (body := job_types.example(first)) is not None:
        stage = first.stage_names[len(first.stage_names) // 2]
        examples["completes"] = {"summary": "completes", "value": body}
        fails = {"summary": f"fails at {stage}, after its retries", "value": body | {"fail_at_stage": stage}}
        examples["fails"] = fails
        examples["later"] = {"summary": "starts in a minute", "value": body | {"delay_seconds": 60}}
        if known.callbacks:
            value = body | {"callback_url": EXAMPLE_URL}
            examples["called_back"] = {"summary": "with a callback when the job is finished", "value": value}
    for name in known.pipelines.types[1:]:
        pipeline = known.pipelines.by_type[name]
        if pipeline.params is not None and (body := job_types.example(pipeline)) is not None:
            examples[name] = {"summary": f"a job of the type {name}", "value": body}
    return examples


def _batch_examples(known: Known) -> dict[str, Any]:
    body = job_types.example(known.pipelines.by_type[known.pipelines.types[0]])
    if body is None:
        return {}
    return {"two": {"summary": "two jobs", "value": {"jobs": [body, body | {"delay_seconds": 60}]}}}


def _body(description: str) -> RequestBody:
    media = OpenAPIMediaType(schema=Schema(type=OpenAPIType.OBJECT))
    return RequestBody(required=True, description=description, content={"application/json": media})


@dataclass
class SubmitOperation(Operation):
    """The body of POST /jobs. The route reads it itself, so Litestar cannot describe it. `complete` adds the rest."""

    def __post_init__(self) -> None:
        self.request_body = _body("The job to run.")


@dataclass
class BatchOperation(Operation):
    """The body of POST /jobs/batch, as SubmitOperation."""

    def __post_init__(self) -> None:
        self.request_body = _body("The jobs to run.")


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
            _query("include", INCLUDE, Schema(type=OpenAPIType.STRING, pattern=INCLUDE_PATTERN)),
            _query("cursor", "the `next_cursor` of the previous page", cursor),
        ]


def _query(name: str, description: str, schema: Schema) -> Parameter:
    return Parameter(name=name, param_in="query", required=False, description=description, schema=schema)
