"""The schemas and examples of job types in the OpenAPI document, from any pipelines."""

from typing import Annotated, Any

import msgspec
import pytest

from heimdex_contracts import params, pipelines
from heimdex_contracts.pipelines import Pipeline, Stage
from heimdex_gateway.openapi import examples, job_types, request_bodies
from heimdex_gateway.openapi.request_bodies import Known


class Inner(msgspec.Struct):
    """Of the first type."""

    default: int
    enum: str = "x"


class First(msgspec.Struct):
    """Has fields with the names of keywords of JSON schemas."""

    properties: Inner
    type: str
    pattern: dict[str, int] = {}
    ref: "list[First]" = []


def other_inner() -> Any:
    return msgspec.defstruct("Inner", [("text", str)])


Second = msgspec.defstruct("First", [("inner", other_inner() | None, None), ("required", list[str], [])])
Strange = msgspec.defstruct("Strange", [("code", Annotated[str, msgspec.Meta(pattern="^[0-9]{3}$")])])


def pipeline(job_type: str, struct: Any = None, stages: tuple[str, ...] = ("one",)) -> Pipeline:
    declared = tuple(Stage(name, expected_seconds=1, code="a:b") for name in stages)
    return Pipeline(type=job_type, stages=declared, params=struct)


KNOWN = pipelines.collect(
    [
        pipeline("a-b", First),
        pipeline("a_b", Second),
        pipeline("batch", First, stages=("one", "two")),
        pipeline("plain"),
        pipeline("strange", Strange),
    ]
)


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_each_type_has_its_own_schemas_and_every_reference_leads_to_one() -> None:
    schemas = request_bodies.schemas(Known(KNOWN, True))
    for reference in references(schemas):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    request = schemas["JobRequest"]
    assert list(request["discriminator"]["mapping"]) == ["a-b", "a_b", "batch", "plain", "strange"]
    assert [option["$ref"] for option in request["oneOf"]] == list(request["discriminator"]["mapping"].values())
    assert len(references(request)) == 5
    assert len({schema["title"] for schema in schemas.values()}) == len(schemas)
    for job_type, reference in request["discriminator"]["mapping"].items():
        schema = schemas[reference.rpartition("/")[2]]
        assert schema["properties"]["type"]["enum"] == [job_type]
        stages = schema["properties"]["fail_at_stage"]["anyOf"][0]["enum"]
        assert stages == list(KNOWN.by_type[job_type].stage_names)
        assert ("params" in schema["required"]) == (job_type in {"a-b", "batch", "strange"})


def test_fields_with_the_names_of_keywords_keep_their_schemas() -> None:
    schemas = request_bodies.schemas(Known(KNOWN, True))
    first = schemas["ABParams"]
    assert list(first["properties"]) == ["properties", "type", "pattern", "ref"]
    assert first["additionalProperties"] is False
    inner = schemas[first["properties"]["properties"]["$ref"].rpartition("/")[2]]
    assert list(inner["properties"]) == ["default", "enum"]
    assert inner["additionalProperties"] is False
    assert inner["properties"]["default"]["type"] == "integer"
    assert first["properties"]["ref"]["items"] == {"$ref": "#/components/schemas/ABParams"}


def test_no_field_of_a_request_has_a_default() -> None:
    """openapi-typescript takes a field with a default for one that must be sent."""
    schemas = request_bodies.schemas(Known(KNOWN, True))
    for name, schema in schemas.items():
        for field, part in schema.get("properties", {}).items():
            assert "default" not in part, (name, field)
    assert schemas["ABInner"]["properties"]["enum"]["description"] == 'default: "x"'


def test_the_schema_is_made_anew_each_time() -> None:
    once = request_bodies.schemas(Known(KNOWN, True))
    assert request_bodies.schemas(Known(KNOWN, True)) == once


@pytest.mark.parametrize("job_type", ["a-b", "a_b", "batch", "plain"])
def test_an_example_is_a_job_that_would_be_accepted(job_type: str) -> None:
    body = job_types.example(KNOWN.by_type[job_type])
    assert body is not None
    params.validated(msgspec.json.encode(body.get("params")), KNOWN.by_type[job_type])


def test_a_type_whose_params_cannot_be_made_up_has_no_example() -> None:
    strange = KNOWN.by_type["strange"]
    assert job_types.example(strange) is None
    alone = Known(pipelines.collect([strange]), True)
    assert request_bodies._examples(alone) == {}
    assert request_bodies._batch_examples(alone) == {}


def test_the_examples_have_only_stages_that_the_gateway_knows() -> None:
    text = str(examples.responses(KNOWN)) + examples.stream(KNOWN) + examples.wrong_stage(KNOWN)
    assert "'one'" in text
    for stage in ("extracting", "analyzing", "indexing", "mock_process"):
        assert stage not in text
