"""Parts of the OpenAPI document that the framework cannot derive.

These are the parameters that the routes read themselves, the errors of the middleware, and links between operations.
"""

from typing import Any, Final

from heimdex_gateway.openapi.request_bodies import INCLUDE_PATTERN
from heimdex_gateway.schemas import parameters
from heimdex_gateway.schemas.parameters import MAX_KEY_LENGTH

#: Schemas by parameter name. The framework describes each of them as any string or null.
_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "job_id": {"type": "string", "format": "uuid"},
    "wait": {"type": "number", "minimum": 0, "maximum": parameters.MAX_WAIT_SECONDS},
    "from": {"type": "string", "enum": ["failed", "start"], "default": "failed"},
    "include": {"type": "string", "pattern": INCLUDE_PATTERN},
    "traceparent": {"type": "string"},
    "Last-Event-ID": {"type": "string"},
    "Idempotency-Key": {
        "type": "string",
        "minLength": 1,
        # With or without surrounding quotes.
        "maxLength": MAX_KEY_LENGTH + 2,
        "pattern": f'^([!#-~]([ -~]{{0,{MAX_KEY_LENGTH - 2}}}[!-~])?|"[ !#-\\[\\]-~]{{1,{MAX_KEY_LENGTH}}}")$',
    },
}


def _error(description: str, detail: str, headers: dict[str, str]) -> dict[str, Any]:
    media = {"schema": {"$ref": "#/components/schemas/ErrorBody"}, "examples": {"error": {"value": {"detail": detail}}}}
    return {"description": description, "headers": _header_objects(headers), "content": {"application/json": media}}


def _header_objects(headers: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


#: Errors of the middleware, which occur if API keys or a rate limit are configured.
_MIDDLEWARE_ERRORS: Final = {
    "401": _error(
        "The API key is missing or unknown.",
        "Missing API key: send 'Authorization: Bearer <key>'.",
        {"WWW-Authenticate": "Bearer"},
    ),
    "429": _error(
        "Too many requests with this key; `Retry-After` gives the seconds to wait.",
        "Too many requests: the limit is 50 a second, with a burst of 200. Try again in 1 s.",
        {
            "Retry-After": "seconds after which one more request is allowed",
            "RateLimit-Limit": "requests allowed at once (the burst); all responses have the RateLimit headers",
            "RateLimit-Policy": "the burst, and the seconds until a used-up burst is available again",
            "RateLimit-Remaining": "requests that are allowed now",
            "RateLimit-Reset": "seconds until the whole burst is available again",
        },
    ),
}

#: The operations that a response with a job links to.
_JOB: Final = ("getJob", "listJobEvents", "cancelJob", "retryJob")
#: Operation, status, JSON pointer to the job id in that response, and the operations that the id can be passed to.
_LINKS: Final = (
    ("submitJob", "202", "/job_id", _JOB),
    ("submitJobs", "202", "/job_ids/0", _JOB),
    ("listJobs", "200", "/jobs/0/id", _JOB),
    ("cancelJob", "200", "/id", _JOB),
    ("cancelJob", "202", "/id", _JOB),
    ("retryJob", "200", "/id", _JOB),
    ("retryJob", "202", "/id", _JOB),
)


def add(document: dict[str, Any]) -> None:
    """Add the schemas, errors and links to the document, in place. Can be repeated on the same document."""
    operations = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    for operation in operations.values():
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _PARAMETERS.get(parameter["name"], parameter["schema"])
        if "operations" in operation["tags"]:
            operation["security"] = []
        else:
            operation["responses"] |= _MIDDLEWARE_ERRORS
            if "503" in operation["responses"]:
                operation["responses"]["503"]["headers"] = _header_objects({"Retry-After": "seconds to wait"})
    for name, status, pointer, targets in _LINKS:
        operations[name]["responses"][status]["links"] = {
            target: {"operationId": target, "parameters": {"job_id": f"$response.body#{pointer}"}} for target in targets
        }
    operations["listJobs"]["responses"]["200"]["links"]["listJobs"] = {
        "operationId": "listJobs",
        "parameters": {"cursor": "$response.body#/next_cursor"},
        "description": "the next page; there is none if `next_cursor` is null",
    }
