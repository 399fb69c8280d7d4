"""Which requests are accepted, and how a job is encoded."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.validation import CallbackUrlRefused, CallbackValidation
from heimdex_contracts import pipelines
from heimdex_contracts.job_object import job_object, moment
from heimdex_contracts.lifecycle import snapshot
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from heimdex_gateway.errors import answer
from heimdex_gateway.problem import Problem
from heimdex_gateway.schemas.job_request import JobBody, _refusal
from heimdex_gateway.schemas.job_request import job as job_request
from heimdex_gateway.schemas.job_request import jobs as job_requests
from tests.support.histories import Writer, due

KNOWN = pipelines.load(["heimdex_contracts.mock_process"])
NO_CALLBACKS = CallbackValidation(False, AddressPolicy(), Resolver(1))


def refused(body: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        job_request(body, KNOWN, NO_CALLBACKS)
    return caught.value


@pytest.mark.parametrize(
    ("body", "stage"),
    [
        (b'{"type": "mock_process"}', None),
        (b'{"type": "mock_process", "fail_at_stage": null}', None),
        (b' {"fail_at_stage": "analyzing",\n"type": "mock_process"} ', "analyzing"),
    ],
)
def test_a_job_request_is_read(body: bytes, stage: str | None) -> None:
    request = job_request(body, KNOWN, NO_CALLBACKS)
    assert (request.type, request.fail_at_stage) == ("mock_process", stage)


NO_JSON = [b"", b"  ", b"{", b'{"type": }', b"type=mock_process", b"\xff", b'{"type": "\xff"}', b"{'type':1}", b"NaN"]
NO_JSON += [b'{"type": "mock_process"} x', b"\x00", b"[" * 100_000, b'{"a":' * 50_000]


@pytest.mark.parametrize("body", NO_JSON)
def test_malformed_json_is_refused_with_400(body: bytes) -> None:
    problem = refused(body)
    assert (problem.status, bool(problem.detail)) == (400, True)


@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b'"mock_process"', b"true", b"1.5"])
def test_json_that_is_not_an_object_is_refused_with_422(body: bytes) -> None:
    assert refused(body).status == 422


WRONG: list[tuple[Any, str, str]] = [
    ({}, "type", "mock_process"),
    ({"fail_at_stage": None}, "type", "mock_process"),
    ({"type": "unheard_of"}, "type", "mock_process"),
    ({"type": None}, "type", "mock_process"),
    ({"type": 7}, "type", "mock_process"),
    ({"type": ["mock_process"]}, "type", "mock_process"),
    ({"type": {}}, "type", "mock_process"),
    ({"type": ""}, "type", "mock_process"),
    ({"type": "MOCK_PROCESS"}, "type", "mock_process"),
    ({"type": "mock_process", "delay_seconds": -1}, "delay_seconds", "not -1."),
    ({"type": "mock_process", "delay_seconds": 31622400.5}, "delay_seconds", "not 31622400.5."),
    ({"type": "mock_process", "delay_seconds": 10**400}, "delay_seconds", "not a number."),
    ({"type": "mock_process", "delay_seconds": True}, "delay_seconds", "not a boolean."),
    ({"type": "mock_process", "run_at": 1763942400}, "run_at", "not 1763942400."),
    ({"type": "mock_process", "fail_at_stage": "painting"}, "fail_at_stage", "analyzing"),
    ({"type": "mock_process", "fail_at_stage": ""}, "fail_at_stage", "analyzing"),
    ({"type": "mock_process", "fail_at_stage": 1}, "fail_at_stage", "analyzing"),
    ({"type": "mock_process", "fail_at_stage": False}, "fail_at_stage", "analyzing"),
    ({"type": "mock_process", "fail_at_stage": ["analyzing"]}, "fail_at_stage", "analyzing"),
    ({"type": "mock_process", "fail_at_stage": {"a": 1}}, "fail_at_stage", "analyzing"),
    ({"type": "mock_process", "priority": 1}, "priority", "fail_at_stage"),
    ({"type": "mock_process", "x" * 1000: 1}, "x" * 60, "fail_at_stage"),
]


@pytest.mark.parametrize(("body", "field", "allowed"), WRONG)
def test_a_wrong_field_is_refused_with_422_that_names_it_and_what_is_allowed(
    body: Any, field: str, allowed: str
) -> None:
    problem = refused(json.dumps(body).encode())
    assert problem.status == 422
    assert field in problem.detail
    assert allowed in problem.detail
    assert len(problem.detail) < 500


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"type": "mock_process", "delay_seconds": %s}', "delay_seconds"),
        ('{"type": %s}', "type"),
        ('{"type": "mock_process", "run_at": %s}', "run_at"),
        ('{"type": "mock_process", "priority": %s}', "priority"),
    ],
)
def test_a_number_beyond_float_range_is_refused_like_any_other_number(body: str, field: str, number: str) -> None:
    problem = refused((body % number).encode())
    assert (problem.status, problem.extra["field"]) == (422, field)


@pytest.mark.parametrize("body", ['{"delay_seconds": 1e400, "type": "mock_process"', '{"type": 1e400, "a": NaN}'])
def test_a_number_beyond_float_range_in_malformed_json_is_refused_with_400(body: str) -> None:
    assert refused(body.encode()).status == 400


def test_a_number_beyond_float_range_is_never_part_of_a_job() -> None:
    twice = b'{"type": "mock_process", "delay_seconds": 1e400, "delay_seconds": 1}'
    assert refused(twice).status == 400


@pytest.mark.parametrize("half", ["\\ud800", "\\udc00", "\\ud800x", "\\ud800\\u0041"])
def test_a_lone_surrogate_is_refused_by_name(half: str) -> None:
    problem = refused(f'{{"type": "{half}"}}'.encode())
    assert problem.status == 400
    assert f"{half[:6]} is half of a surrogate pair" in problem.detail
    assert answer(problem.status, problem.detail, **problem.extra).content
    assert refused(f'{{"type": "{half}'.encode()).status == 400


@pytest.mark.parametrize(
    ("body", "says"), [({}, "is missing"), ({"jobs": None}, "not null"), ({"jobs": []}, "not 0 of them")]
)
def test_a_batch_without_jobs_is_refused_as_missing_or_as_empty(body: Any, says: str) -> None:
    with pytest.raises(Problem, match=says) as caught:
        job_requests(json.dumps(body).encode(), KNOWN, NO_CALLBACKS)
    assert (caught.value.status, caught.value.extra["field"]) == (422, "jobs")


@given(st.binary(max_size=80))
def test_any_bytes_are_a_job_or_a_problem_that_json_can_encode(body: bytes) -> None:
    try:
        # Some bytes are a job: hypothesis also uses the literals of these tests.
        job_type = job_request(body, KNOWN, NO_CALLBACKS).type
    except Problem as error:
        problem = error
    else:
        assert job_type == "mock_process"
        return
    assert problem.status in {400, 422}
    assert answer(problem.status, problem.detail, **problem.extra).content


_KEYS = st.text(max_size=8) | st.sampled_from(["type", "fail_at_stage"])


@given(st.dictionaries(_KEYS, st.none() | st.text() | st.lists(st.integers())))
def test_any_object_that_is_not_a_job_is_a_422_that_json_can_encode(data: dict[str, Any]) -> None:
    hypothesis.assume(data.get("type") != "mock_process")
    problem = refused(msgspec.json.encode(data))
    assert problem.status == 422
    assert answer(problem.status, problem.detail, **problem.extra).content


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (datetime(2025, 10, 28, 12, 0, 0, 0, tzinfo=UTC), "2025-10-28T12:00:00.000000Z"),
        (datetime(2025, 10, 28, 12, 0, 0, 120000, tzinfo=UTC), "2025-10-28T12:00:00.120000Z"),
        (datetime(2025, 10, 28, 12, 0, 0, 7, tzinfo=timezone(timedelta(hours=2))), "2025-10-28T10:00:00.000007Z"),
    ],
)
def test_a_time_is_utc_with_six_digits_of_microseconds(at: datetime, text: str) -> None:
    assert moment(at) == text


def test_a_job_is_shown_with_exactly_eight_keys() -> None:
    writer = Writer()
    for event in (due(), writer.events[0]):
        shown = msgspec.to_builtins(job_object(snapshot(event)))
        assert list(shown) == ["id", "status", "stage", "progress", "result", "error", "created_at", "updated_at"]
        assert shown["status"] == "pending"
        assert (shown["stage"], shown["result"], shown["error"], shown["progress"]) == (None, None, None, 0)


ANY_JSON = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just([]) | st.just({})
)


@given(st.dictionaries(st.sampled_from(JobBody.__struct_fields__), ANY_JSON), st.booleans())
def test_a_request_that_the_struct_refuses_is_never_accepted(fields: dict[str, Any], typed: bool) -> None:
    """An accepted value that a message cannot hold would become a dead letter."""
    body = msgspec.json.encode({**fields, "type": "mock_process"} if typed else fields)
    try:
        msgspec.json.decode(body, type=JobBody)
    except msgspec.ValidationError:
        with pytest.raises((Problem, CallbackUrlRefused)):
            job_request(body, KNOWN, NO_CALLBACKS)


def test_an_error_of_a_field_without_its_own_sentence_names_the_field() -> None:
    class Labeled(JobBody, frozen=True, forbid_unknown_fields=True):
        label: str | None = None

    for decoder, body, field in (
        (msgspec.json.Decoder(Labeled), b'{"type": "mock_process", "label": 5}', "label"),
        (msgspec.json.Decoder(list[Labeled]), b'[{"type": "mock_process", "label": 5}]', "[0].label"),
    ):
        with pytest.raises(msgspec.ValidationError) as caught:
            decoder.decode(body)
        problem = _refusal(caught.value)
        assert (problem.status, problem.extra) == (422, {"field": field})
        assert problem.detail == f"The field {field!r} is invalid: Expected `str | null`, got `int`."
