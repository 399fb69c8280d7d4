"""What the OpenAPI document says of the bodies and queries that the routes read themselves."""

from dataclasses import dataclass

from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, Parameter, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from heimdex_gateway.jobs import repository
from heimdex_gateway.openapi.callbacks import EXAMPLE_URL, url_schema
from heimdex_gateway.schemas import job_list
from heimdex_gateway.schemas.job_request import MAX_BATCH_JOBS, MAX_DELAY

_TYPES: list[str] = []
_STAGES: list[str] = []
_CALLED_BACK: dict[str, Example] = {}


def describe(types: tuple[str, ...], stages: tuple[str, ...], *, callbacks: bool) -> None:
    """Tell the document which job types and stages this gateway knows, and whether it takes callbacks."""
    _TYPES[:] = types
    _STAGES[:] = stages
    _CALLED_BACK.clear()
    if callbacks:
        value = {"type": "mock_process", "callback_url": EXAMPLE_URL}
        _CALLED_BACK["called_back"] = Example(summary="tells its end to a URL", value=value)


def takes_callbacks() -> bool:
    """Whether this gateway takes callbacks."""
    return bool(_CALLED_BACK)


def job_schema() -> Schema:
    """One job as a caller asks for it, with the job types and stages that this gateway knows."""
    null = Schema(type=OpenAPIType.NULL)
    return Schema(
        title="JobRequest",
        type=OpenAPIType.OBJECT,
        additional_properties=False,
        required=["type"],
        schema_not=Schema(
            required=["run_at", "delay_seconds"],
            properties={
                "run_at": Schema(type=OpenAPIType.STRING),
                "delay_seconds": Schema(type=OpenAPIType.NUMBER),
            },
        ),
        properties={
            "type": Schema(type=OpenAPIType.STRING, description="a known job type", enum=list(_TYPES)),
            "fail_at_stage": Schema(
                one_of=[Schema(type=OpenAPIType.STRING, enum=list(_STAGES)), null],
                description="null, or the stage at whose start the job fails on every attempt",
            ),
            "run_at": Schema(
                one_of=[Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME), null],
                description="not before this time, with its zone; excludes delay_seconds",
            ),
            "delay_seconds": Schema(
                one_of=[Schema(type=OpenAPIType.NUMBER, minimum=0, maximum=MAX_DELAY.total_seconds()), null],
                description="not before so many seconds from now; excludes run_at",
            ),
            "callback_url": url_schema(enabled=takes_callbacks()),
        },
    )


def batch_schema() -> Schema:
    """Many of them."""
    jobs = Schema(type=OpenAPIType.ARRAY, items=job_schema(), min_items=1, max_items=MAX_BATCH_JOBS)
    return Schema(
        title="BatchRequest",
        type=OpenAPIType.OBJECT,
        additional_properties=False,
        required=["jobs"],
        properties={"jobs": jobs},
    )


def _body(description: str, schema: Schema, examples: dict[str, Example]) -> RequestBody:
    media = OpenAPIMediaType(schema=schema, examples=dict(examples))
    return RequestBody(required=True, description=description, content={"application/json": media})


@dataclass
class SubmitOperation(Operation):
    """POST /jobs: the route reads its body itself, so its shape is told here."""

    def __post_init__(self) -> None:
        self.request_body = _body(
            "The job to run.",
            job_schema(),
            {
                "completes": Example(summary="runs to its end", value={"type": "mock_process"}),
                "fails": Example(
                    summary="fails at analyzing, after its retries",
                    value={"type": "mock_process", "fail_at_stage": "analyzing"},
                ),
                "later": Example(summary="starts in a minute", value={"type": "mock_process", "delay_seconds": 60}),
                **_CALLED_BACK,
            },
        )


@dataclass
class BatchOperation(Operation):
    """POST /jobs/batch, likewise."""

    def __post_init__(self) -> None:
        value = {"jobs": [{"type": "mock_process"}, {"type": "mock_process", "delay_seconds": 60}]}
        self.request_body = _body("The jobs to run.", batch_schema(), {"two": Example(summary="two jobs", value=value)})


@dataclass
class RetryManyOperation(Operation):
    """POST /jobs/retry: the route reads its query itself."""

    def __post_init__(self) -> None:
        status = Schema(type=OpenAPIType.STRING, enum=["failed", "canceled"])
        self.parameters = [
            Parameter(
                name="status", param_in="query", required=True, description="which jobs to run again", schema=status
            ),
            _query("type", "only jobs of this type", Schema(type=OpenAPIType.STRING, enum=list(_TYPES))),
        ]


@dataclass
class ListOperation(Operation):
    """GET /jobs: the route reads its query itself, so its parameters are told here."""

    def __post_init__(self) -> None:
        cursor = Schema(type=OpenAPIType.STRING, pattern=job_list.CURSOR)
        time = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME)
        limit = Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=job_list.MOST, default=job_list.USUAL)
        self.parameters = [
            _query(
                "status", "only jobs of this status", Schema(type=OpenAPIType.STRING, enum=list(repository.STATUSES))
            ),
            _query("type", "only jobs of this type", Schema(type=OpenAPIType.STRING, enum=list(_TYPES))),
            _query("created_after", "only jobs created later than this", time),
            _query("created_before", "only jobs created earlier than this", time),
            _query("limit", "how many jobs a page has at most", limit),
            _query("cursor", "the `next_cursor` of the page before", cursor),
        ]


def _query(name: str, description: str, schema: Schema) -> Parameter:
    return Parameter(name=name, param_in="query", required=False, description=description, schema=schema)
