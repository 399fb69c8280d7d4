"""Parameters that several routes declare."""

from typing import Annotated

from litestar.params import HeaderParameter, Parameter

from heimdex_gateway.openapi import responses

JobId = Annotated[str, Parameter(description="the id that POST answered")]
IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        required=False,
        description="the same key and body give the same job, or batch, for 24 hours",
    ),
]
Traceparent = Annotated[
    str | None, HeaderParameter(name="traceparent", required=False, description=responses.TRACEPARENT_HEADER)
]
