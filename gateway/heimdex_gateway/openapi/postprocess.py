"""What the framework cannot know for the OpenAPI document: parameters that the routes read themselves, and links."""

from typing import Any, Final

from heimdex_gateway.schemas import parameters
from heimdex_gateway.schemas.parameters import MAX_KEY_LENGTH

#: By name; the framework takes each for any string, or null.
_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "job_id": {"type": "string", "format": "uuid"},
    "wait": {"type": "number", "minimum": 0, "maximum": parameters.MAX_WAIT_SECONDS},
    "from": {"type": "string", "enum": ["failed", "start"], "default": "failed"},
    "traceparent": {"type": "string"},
    "Last-Event-ID": {"type": "string"},
    "Idempotency-Key": {
        "type": "string",
        "minLength": 1,
        # Bare, or in quotes.
        "maxLength": MAX_KEY_LENGTH + 2,
        "pattern": f'^([!#-~]([ -~]{{0,{MAX_KEY_LENGTH - 2}}}[!-~])?|"[ !#-\\[\\]-~]{{1,{MAX_KEY_LENGTH}}}")$',
    },
}


def _refusal(description: str, detail: str, headers: dict[str, str]) -> dict[str, Any]:
    media = {"schema": {"$ref": "#/components/schemas/ErrorBody"}, "examples": {"error": {"value": {"detail": detail}}}}
    return {"description": description, "headers": _shown(headers), "content": {"application/json": media}}


def _shown(headers: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


#: Answered in front of the routes, where there are keys or a limit.
_REFUSALS: Final = {
    "401": _refusal(
        "No key, or none that is known here.",
        "This gateway wants a key: send it as 'Authorization: Bearer <key>'.",
        {"WWW-Authenticate": "Bearer"},
    ),
    "429": _refusal(
        "Too many requests with this key; `Retry-After` says when to try again.",
        "Too many requests: 50 a second are allowed, 200 of them at once. Try again in 1 s.",
        {
            "Retry-After": "seconds after which there is room for one request",
            "RateLimit-Limit": "requests at once, after silence; with a limit also on every other answer, as the next",
            "RateLimit-Policy": "the same, and the seconds in which it comes back",
            "RateLimit-Remaining": "requests that would be answered now",
            "RateLimit-Reset": "seconds until all of them would be",
        },
    ),
}

#: What may be asked next, by the operation and status that answered: the next operation, and where its job's id is.
_JOB: Final = ("getJob", "listJobEvents", "cancelJob", "retryJob")
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
    """Put them in, in place. Safe to repeat."""
    operations = {found["operationId"]: found for path in document["paths"].values() for found in path.values()}
    for operation in operations.values():
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _PARAMETERS.get(parameter["name"], parameter["schema"])
        if "operations" in operation["tags"]:
            operation["security"] = []
        else:
            operation["responses"] |= _REFUSALS
            if "503" in operation["responses"]:
                operation["responses"]["503"]["headers"] = _shown({"Retry-After": "seconds after which to try again"})
    for name, status, pointer, targets in _LINKS:
        operations[name]["responses"][status]["links"] = {
            target: {"operationId": target, "parameters": {"job_id": f"$response.body#{pointer}"}} for target in targets
        }
    operations["listJobs"]["responses"]["200"]["links"]["listJobs"] = {
        "operationId": "listJobs",
        "parameters": {"cursor": "$response.body#/next_cursor"},
        "description": "the page after this one; where `next_cursor` is null there is none",
    }
