"""Parameters that several routes declare."""

from typing import Annotated

from litestar.params import HeaderParameter, Parameter

from heimdex_gateway.openapi import request_bodies, responses

JobId = Annotated[str, Parameter(description="the `job_id` that POST /jobs returned")]
Include = Annotated[str | None, Parameter(required=False, description=request_bodies.INCLUDE)]
IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        required=False,
        description="for 24 hours, the same key and body return the same job or batch",
    ),
]
Traceparent = Annotated[
    str | None, HeaderParameter(name="traceparent", required=False, description=responses.TRACEPARENT_HEADER)
]
