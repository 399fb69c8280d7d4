"""What the OpenAPI document says of callbacks: the field, and the request that the receiver gets."""

from typing import Any, Final

from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from heimdex_callbacks.url import MAX_LENGTH

EXAMPLE_URL: Final = "https://shop.example/hooks/heimdex"

_DESCRIPTION: Final = """\
Sent when a run of the job has ended: completed, failed or canceled. Any 2xx says that it arrived; 410 that no more is
wanted; after anything else, no answer within 15 s, or more than 32 KiB before its headers are over, it is sent again,
for a day. It may arrive more than once: the same `webhook-id` is the same end of the same job. Verify the signature
before you believe the body (Standard Webhooks, https://www.standardwebhooks.com).
"""
_HEADERS: Final = (
    ("webhook-id", "one for each end of each job, the same on every try", "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10-3"),
    (
        "webhook-timestamp",
        "when this try was made: seconds since 1970; refuse what is older than five minutes",
        "1761652806",
    ),
    (
        "webhook-signature",
        "`v1,` and the base64 of the HMAC-SHA256, under the shared secret, of id, timestamp and body, dots in between; "
        "while the operator changes secrets, one under each, with a space in between",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
)


def url_schema(*, enabled: bool) -> Schema:
    """The field of a job."""
    if not enabled:
        return Schema(type=OpenAPIType.NULL, description="null: the operator has not enabled callbacks")
    url = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.URI, max_length=MAX_LENGTH)
    return Schema(
        one_of=[url, Schema(type=OpenAPIType.NULL)],
        description=(
            "null, or where the job object is POSTed, signed, when the job ends: https:// or http://, to a public "
            "address, without a user name or a fragment"
        ),
    )


def add(document: dict[str, Any]) -> None:
    """The request to the receiver, in place. Safe to repeat."""
    operation = {
        "operationId": "jobEnded",
        "summary": "A job has ended",
        "description": _DESCRIPTION,
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": description,
                "schema": {"type": "string"},
                "example": example,
            }
            for name, description, example in _HEADERS
        ],
        "requestBody": {
            "required": True,
            "description": "The job as it ended.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobObject"}}},
        },
        "responses": {
            "2XX": {"description": "It arrived."},
            "410": {"description": "Gone: this end is not sent again."},
        },
    }
    document["paths"]["/jobs"]["post"]["callbacks"] = {
        "jobEnded": {"{$request.body#/callback_url}": {"post": operation}}
    }
