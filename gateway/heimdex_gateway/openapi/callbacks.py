"""Callbacks in the OpenAPI document: the schema of `callback_url`, and the request that the receiver gets."""

from typing import Any, Final

from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from heimdex_callbacks.url import MAX_LENGTH

EXAMPLE_URL: Final = "https://shop.example/hooks/heimdex"

_DESCRIPTION: Final = """\
Sent when a run of the job reaches a terminal state: completed, failed or canceled. Any 2xx response confirms the
delivery; 410 stops it. After any other response, no response within 15 s, or more than 32 KiB before the end of the
response headers, the callback is sent again, for about a day. It may arrive more than once: requests with the same
`webhook-id` report the same terminal state of the same run. Verify the signature before you trust the body (Standard
Webhooks, https://www.standardwebhooks.com).
"""
_HEADERS: Final = (
    (
        "webhook-id",
        "identifies the terminal state of one run of one job; the same on every attempt",
        "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10-3",
    ),
    (
        "webhook-timestamp",
        "time of this attempt, in seconds since 1970 UTC; reject requests older than five minutes",
        "1761652806",
    ),
    (
        "webhook-signature",
        "`v1,` and the base64 of the HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>` with the shared secret; "
        "while the operator rotates secrets, one signature for each secret, separated by a space",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
)


def url_schema(*, enabled: bool) -> Schema:
    """The schema of `callback_url` in a submitted job. enabled: whether the operator has enabled callbacks."""
    if not enabled:
        return Schema(type=OpenAPIType.NULL, description="must be null: the operator has not enabled callbacks")
    url = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.URI, max_length=MAX_LENGTH)
    return Schema(
        one_of=[url, Schema(type=OpenAPIType.NULL)],
        description=(
            "null, or the URL to which the signed job object is POSTed when the job has finished: https:// or http://, "
            "a public address, without a user name, a password or a fragment"
        ),
    )


def add(document: dict[str, Any]) -> None:
    """Add the request to the receiver, in place. Can be repeated on the same document."""
    operation = {
        "operationId": "jobEnded",
        "summary": "Report a finished job",
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
            "description": "The job in its terminal state.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobObject"}}},
        },
        "responses": {
            "2XX": {"description": "The callback is delivered."},
            "410": {"description": "Gone: this callback is not sent again."},
        },
    }
    document["paths"]["/jobs"]["post"]["callbacks"] = {
        "jobEnded": {"{$request.body#/callback_url}": {"post": operation}}
    }
