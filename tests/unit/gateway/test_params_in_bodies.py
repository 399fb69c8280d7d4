"""The parameters of submitted jobs: which bodies are refused, with which status and field, and what is kept."""

import hashlib
import json
from typing import Any

import msgspec
import pytest

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.validation import CallbackValidation
from heimdex_contracts import pipelines
from heimdex_contracts.messages import NOTHING
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from heimdex_gateway.jobs.submit import JobRequest
from heimdex_gateway.problem import Problem
from heimdex_gateway.schemas import job_request, parameters

KNOWN = pipelines.load(["heimdex_contracts.mock_process", "tests.support.pipelines.parametrized"])
NO_CALLBACKS = CallbackValidation(False, AddressPolicy(), Resolver(1))
FILLED = b'{"source":"a","language":"auto","box":{"width":640,"height":360},"tags":[],"threshold":0.5,"any":null}'
PLAIN = b'{"type":"mock_process"}'


def job(body: bytes) -> JobRequest:
    return job_request.job(body, KNOWN, NO_CALLBACKS)


def of_type(params: bytes | None, job_type: str = "clip", **more: Any) -> bytes:
    fields = {"type": job_type.encode(), **more}
    encoded = {key: msgspec.Raw(json.dumps(value).encode()) for key, value in more.items()}
    text = msgspec.json.encode({"type": fields["type"].decode(), **encoded})
    return text if params is None else text[:-1] + b',"params":' + params + b"}"


def refusal(body: bytes) -> tuple[int, str | None]:
    """Refuse the body, alone and as the second job of a batch, alike. Returns the status and the field."""
    results = []
    for read, text in ((job_request.job, body), (job_request.jobs, b'{"jobs":[%s,%s]}' % (PLAIN, body))):
        with pytest.raises(Problem) as caught:
            read(text, KNOWN, NO_CALLBACKS)  # type: ignore[operator]
        problem = caught.value
        assert problem.detail
        msgspec.json.encode(problem.detail)
        results.append((problem.status, problem.extra.get("field")))
    (status, field), (batch_status, batch_field) = results
    assert (batch_status, batch_field) == (status, field and f"jobs[1].{field}"), results
    return status, field


BAD: dict[str, tuple[bytes | None, int, str | None]] = {
    "missing": (None, 422, "params.source"),
    "null": (b"null", 422, "params.source"),
    "empty": (b"{ }", 422, "params.source"),
    "wrong type": (b'{"source":1}', 422, "params.source"),
    "wrong type inside": (b'{"source":"a","box":{"width":"1"}}', 422, "params.box.width"),
    "beyond a limit": (b'{"source":"a","box":{"width":5000}}', 422, "params.box.width"),
    "wrong item": (b'{"source":"a","tags":["a",1]}', 422, "params.tags[1]"),
    "not one of them": (b'{"source":"a","language":"fr"}', 422, "params.language"),
    "unknown": (b'{"source":"a","nope":1}', 422, "params.nope"),
    "unknown inside": (b'{"source":"a","box":{"depth":1}}', 422, "params.box.depth"),
    "no whole number": (b'{"source":"a","box":{"width":1.0,"height":1.5}}', 422, "params.box.height"),
    "1e999 beside a whole number": (b'{"source":"a","box":{"width":1.0},"any":1e999}', 422, "params.any"),
    "NUL beside a whole number": (rb'{"source":"\u0000","box":{"width":1.0}}', 422, "params.source"),
    "list": (b"[]", 422, "params"),
    "text": (b'"a"', 422, "params"),
    "number": (b"7", 422, "params"),
    "false": (b"false", 422, "params"),
    "65 KiB": (b'{"source":"%s"}' % (b"a" * 65 * 1024), 413, "params"),
    "NUL": (rb'{"source":"a\u0000"}', 422, "params.source"),
    "NUL in a key": (rb'{"source":"a","any":{"a\u0000":1}}', 422, r"params.any.a\x00"),
    "NUL in an unknown key": (rb'{"source":"a","a\u0000":1}', 422, r"params.a\x00"),
    "half a pair": (rb'{"source":"\ud83d"}', 422, "params.source"),
    "half a pair before a pair": (rb'{"source":"a","any":"\ud83d\ud83d\ude00"}', 422, "params.any"),
    "the other half": (rb'{"source":"a","tags":["a","\uDE00"]}', 422, "params.tags[1]"),
    "half a pair at the end of params": (rb'{"source":"a","any":"\ud83d"}', 422, "params.any"),
    "1e999": (b'{"source":"a","threshold":1e999}', 422, "params.threshold"),
    "1e999 anywhere": (b'{"source":"a","any":[1,-1e999]}', 422, "params.any[1]"),
    "beyond 64 bits": (b'{"source":"a","any":{"n":18446744073709551616}}', 422, "params.any.n"),
    "below 64 bits": (b'{"source":"a","any":-9223372036854775809}', 422, "params.any"),
    "6,000 digits": (b'{"source":"a","any":%s}' % (b"9" * 6000), 422, "params.any"),
}


@pytest.mark.parametrize("name", BAD)
def test_params_that_do_not_fit_are_refused_with_the_field(name: str) -> None:
    given, status, field = BAD[name]
    assert refusal(of_type(given)) == (status, field)


@pytest.mark.parametrize(
    "given",
    [
        b'{"source":"a","any":NaN}',
        b'{"source":"a","threshold":-Infinity}',
        b'{"source":"\xff"}',
        b'{"source":"a","any":{"\xff":1}}',
        b'{"source":"a","any":%s1%s}' % (b"[" * 10_000, b"]" * 10_000),
        b'{"source":"a","any":%s1%s}' % (b"[" * 150, b"]" * 150),
        b"{'source':1}",
    ],
    ids=["NaN", "infinity", "not UTF-8", "key not UTF-8", "10,000 deep", "150 deep", "quotes"],
)
def test_params_that_are_no_json_are_refused_with_400(given: bytes) -> None:
    for read, text in (
        (job_request.job, of_type(given)),
        (job_request.jobs, b'{"jobs":[%s,%s]}' % (PLAIN, of_type(given))),
    ):
        with pytest.raises(Problem) as caught:
            read(text, KNOWN, NO_CALLBACKS)  # type: ignore[operator]
        assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        rb'{"type":"\ud800"}',
        rb'{"type":"clip","fail_at_stage":"\ud800","params":{"source":"a"}}',
        rb'{"type":"\ud800","type":"clip","params":{"source":"a"}}',
        rb'{"type":"clip","\ud800":1,"params":{"source":"a"}}',
        rb'{"type":"clip","params":{"source":"\ud800"},"params":{"source":"a"}}',
    ],
)
def test_half_a_pair_outside_the_params_is_no_json(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        job(body)
    assert caught.value.status == 400


def test_an_escaped_backslash_before_what_looks_like_half_a_pair_is_text() -> None:
    kept = json.loads(bytes(job(of_type(rb'{"source":"\\ud800\ud83d\ude00"}')).params))
    assert kept["source"] == "\\ud800\U0001f600"


@pytest.mark.parametrize("given", [None, b"null", b"{}", b" { } "])
@pytest.mark.parametrize("job_type", ["mock_process", "quiet"])
def test_absent_null_and_empty_params_are_the_same(job_type: str, given: bytes | None) -> None:
    kept = job(of_type(given, job_type)).params
    assert (kept is NOTHING) if job_type == "mock_process" else (bytes(kept) == b'{"volume":3}')


@pytest.mark.parametrize("given", [b'{"a":1}', b"[]", b"0", b'""', rb'"\ud800"', b"[" * 150 + b"]" * 150])
def test_a_type_without_params_refuses_any(given: bytes) -> None:
    assert refusal(of_type(given, "mock_process")) == (422, "params")


def test_an_unknown_param_is_refused_although_the_struct_would_ignore_it() -> None:
    assert refusal(of_type(b'{"volum":1}', "quiet")) == (422, "params.volum")


def test_what_is_kept_is_the_encoding_of_the_struct_with_its_defaults() -> None:
    spaces = b" " * 100_000
    assert bytes(job(of_type(b'{ "source" : "b", %s"source":"a"}' % spaces)).params) == FILLED, "the last one counts"
    kept = bytes(job(of_type(b'{"source":"a","any":[1.50,"\xc3\xa9"]}')).params)
    assert kept == FILLED.replace(b"null", '[1.5,"é"]'.encode())


@pytest.mark.parametrize("number", [b"2", b"2.0", b"2e0", b"20e-1"])
def test_a_whole_number_is_an_integer_however_it_is_written(number: bytes) -> None:
    """As a JSON schema has it: some encoders write every number with a point."""
    kept = bytes(job(of_type(b'{"source":"a","box":{"width":%s,"height":3.0}}' % number)).params)
    assert kept == FILLED.replace(b"640", b"2").replace(b"360", b"3")


def test_64_kib_of_params_are_allowed() -> None:
    room = 64 * 1024 - len(FILLED) + 1
    assert len(bytes(job(of_type(b'{"source":"%s"}' % (b"a" * room))).params)) == 64 * 1024
    assert refusal(of_type(b'{"source":"%s"}' % (b"a" * (room + 1)))) == (413, "params")


@pytest.mark.parametrize(
    ("more", "field"),
    [({"fail_at_stage": "cooking"}, "fail_at_stage"), ({"delay_seconds": -1}, "delay_seconds"), ({"nope": 1}, "nope")],
)
def test_another_invalid_field_is_named_whatever_the_params_are(more: dict[str, Any], field: str) -> None:
    for given in (b'{"source":"a"}', b"[]", b'{"source":1e999}'):
        assert refusal(of_type(given, **more)) == (422, field)


def digest(*bodies: bytes) -> str:
    if len(bodies) == 1:
        return parameters.digest(bodies[0], [job(bodies[0]).params])
    batch = b'{"jobs":[%s]}' % b",".join(bodies)
    return parameters.digest(batch, [each.params for each in job_request.jobs(batch, KNOWN, NO_CALLBACKS)])


def test_the_digest_is_that_of_the_params_as_they_are_kept() -> None:
    omitted, sent, other = (
        of_type(given)
        for given in (
            b'{"source":"a"}',
            b'{"language": "auto", "any":null, "source":"b", "source":"a"}',
            b'{"source":"a","language":"de"}',
        )
    )
    assert digest(omitted) == digest(sent) != digest(other)
    assert digest(omitted, PLAIN) == digest(sent, PLAIN) != digest(other, PLAIN)


def test_the_digest_of_a_body_without_params_is_that_of_releases_before() -> None:
    body = b'{ "fail_at_stage":null, "type":"mock_process"}'
    plain = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    assert digest(body) == hashlib.sha256(plain).hexdigest()
    assert digest(body) == digest(b'{"type":"mock_process","fail_at_stage":null,"params":{}}')
    batch = b'{"jobs":[%s,%s]}' % (body, PLAIN)
    plain = msgspec.json.encode(msgspec.json.decode(batch), order="sorted")
    assert digest(body, PLAIN) == hashlib.sha256(plain).hexdigest()
