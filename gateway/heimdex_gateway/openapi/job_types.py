"""The schemas of the job types in the OpenAPI document: one for each type, with its own parameters and stages.

They have no `default`, but say it: for openapi-typescript a field with a default must be sent.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from heimdex_contracts import params
from heimdex_contracts.json_values import MAX_INTEGER, MIN_INTEGER
from heimdex_contracts.params import ParamsRefused
from heimdex_contracts.pipelines import Pipeline, Pipelines

REF: Final = "#/components/schemas/{name}"
_PREFIX: Final = REF.format(name="")
#: A type without params. Absent, null and an empty object are the same.
_NO_PARAMS: Final = {
    "title": "NoParams",
    "description": "Jobs of this type have no params.",
    "type": "object",
    "properties": {},
    "maxProperties": 0,
    "additionalProperties": False,
}
_NO_NUL: Final = r"^[^\x00]*$"


def add(schemas: dict[str, Any], job: dict[str, Any], pipelines: Pipelines) -> None:
    """Add the schema JobRequest, and those of each job type, in place. job: the schema of JobBody."""
    mapping: dict[str, str] = {}
    names = _Names(schemas)
    for name in pipelines.types:
        pipeline = pipelines.by_type[name]
        title = _title(name)
        request = names.free(f"{title}JobRequest")
        schemas[request] = _request(job, pipeline, _add_params(schemas, names, title, pipeline)) | {"title": request}
        mapping[name] = REF.format(name=request)
    schemas["JobRequest"] = {
        "title": "JobRequest",
        "description": "A job: one schema for each job type.",
        "oneOf": [{"$ref": ref} for ref in mapping.values()],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }


def example(pipeline: Pipeline) -> dict[str, Any] | None:
    """Return a body of POST /jobs for a job of this type; None if it needs params and none can be made up."""
    body: dict[str, Any] = {"type": pipeline.type}
    if pipeline.params is None:
        return body
    schema = pipeline.params_schema or {}
    made: Any = _made_up(schema, schema.get("$defs", {}), 0)
    candidates: tuple[Any, ...] = ({}, made)
    for given in candidates:
        try:
            params.validated(msgspec.json.encode(given), pipeline)
        except (ParamsRefused, TypeError):
            continue
        return body | ({"params": given} if given else {})
    return None


class _Names:
    """The names of the document's schemas. Two types, or the structs of two types, may give the same name."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {*taken, "JobRequest", "NoParams"}

    def free(self, name: str) -> str:
        number, free = 1, name
        while free in self._taken:
            number += 1
            free = f"{name}{number}"
        self._taken.add(free)
        return free


def _title(job_type: str) -> str:
    return "".join(word.capitalize() for word in re.split("[-_]", job_type))


def _request(job: dict[str, Any], pipeline: Pipeline, given: dict[str, Any]) -> dict[str, Any]:
    stages = {"anyOf": [{"type": "string", "enum": list(pipeline.stage_names)}, {"type": "null"}]}
    properties = {name: _without_default(field) for name, field in job["properties"].items()}
    properties |= {
        "type": {"type": "string", "enum": [pipeline.type]},
        "fail_at_stage": properties["fail_at_stage"] | stages,
        "params": given,
    }
    required = ["type", "params"] if _needs_params(pipeline) else ["type"]
    return job | {"properties": properties, "required": required, "description": f"A job of the type {pipeline.type}."}


def _needs_params(pipeline: Pipeline) -> bool:
    return pipeline.params is not None and bool(_struct_schema(pipeline).get("required"))


def _struct_schema(pipeline: Pipeline) -> dict[str, Any]:
    schema: dict[str, Any] = pipeline.params_schema or {}
    name = schema.get("$ref", "").rpartition("/")[2]
    definition: dict[str, Any] = schema["$defs"][name] if name else schema
    return definition


def _add_params(schemas: dict[str, Any], names: _Names, title: str, pipeline: Pipeline) -> dict[str, Any]:
    """Add the schemas of the type's params, and return the schema of the field `params`."""
    if pipeline.params is None:
        schemas["NoParams"] = _NO_PARAMS
        return {"anyOf": [{"$ref": REF.format(name="NoParams")}, {"type": "null"}]}
    root = (pipeline.params_schema or {}).get("$ref", "").rpartition("/")[2]
    definitions = (pipeline.params_schema or {}).get("$defs") or {root: _struct_schema(pipeline)}
    renamed = {
        name: names.free(f"{title}Params" if name == root else f"{title}{re.sub('[^A-Za-z0-9]', '', name)}")
        for name in definitions
    }
    for name, definition in definitions.items():
        schemas[renamed[name]] = _component(definition, renamed) | {"title": renamed[name]}
    ref = {"$ref": REF.format(name=renamed[root])}
    return ref if _needs_params(pipeline) else {"anyOf": [ref, {"type": "null"}]}


def _component(node: Any, renamed: dict[str, str]) -> Any:
    """Return a part of a JSON schema as a part of the document, with the limits that all params have."""
    if isinstance(node, list):
        return [_component(item, renamed) for item in node]
    if isinstance(node, str) and node.startswith("#/$defs/"):
        return REF.format(name=renamed[node.removeprefix("#/$defs/")])
    if not isinstance(node, dict):
        return node
    copy: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            copy[key] = {name: _without_default(_component(part, renamed)) for name, part in value.items()}
        else:
            copy[key] = value if key in {"default", "enum", "const", "examples"} else _component(value, renamed)
    if "enum" in copy or "const" in copy:
        return copy
    match copy.get("type"):
        case "string" if not {"pattern", "format", "contentEncoding"} & copy.keys():
            copy["pattern"] = _NO_NUL
        case "integer":
            if "exclusiveMinimum" not in copy:
                copy.setdefault("minimum", MIN_INTEGER)
            if "exclusiveMaximum" not in copy:
                copy.setdefault("maximum", MAX_INTEGER)
        case "object" if "properties" not in copy and "propertyNames" not in copy:
            copy["propertyNames"] = {"pattern": _NO_NUL}
    return copy


def _without_default(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field with its default in the description. null needs no mention."""
    rest = {key: value for key, value in schema.items() if key != "default"}
    if schema.get("default") is None:
        return rest
    default = f"default: {msgspec.json.encode(schema['default']).decode()}"
    said = schema.get("description")
    return rest | {"description": f"{said} ({default})" if said else default}


def _made_up(schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> Any:
    """Return a value that this part of a JSON schema probably allows: the shortest one."""
    if depth > 20:  # a struct that contains itself
        return None
    if "$ref" in schema:
        return _made_up(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions, depth + 1)
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    if "anyOf" in schema:
        return _made_up(schema["anyOf"][0], definitions, depth + 1)
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            inner = schema.get("properties", {})
            return {name: _made_up(inner[name], definitions, depth + 1) for name in schema.get("required", ())}
        case "array":
            item = _made_up(schema.get("items") or {}, definitions, depth + 1)
            return [item] * schema.get("minItems", 0)
        case "string":
            return _text(schema)
        case "integer" | "number":
            return schema.get("minimum", schema.get("maximum", schema.get("exclusiveMinimum", 0) + 1))
        case "boolean":
            return False
    return None


def _text(schema: dict[str, Any]) -> str:
    texts = {
        "uri": "https://media.example/film.mp4",
        "date-time": "2025-10-28T12:00:00Z",
        "date": "2025-10-28",
        "uuid": "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10",
    }
    text = texts.get(schema.get("format", ""), "text")
    return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
