"""A message that is built from a stored one keeps what this release does not know."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts import messages, patches
from heimdex_contracts.errors import UnusableMessage
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import AnyJobMessage, Due, Failed, Follows, JobMessage, StageRun
from heimdex_status_store.queries import Unfinished
from heimdex_status_store.reconciler import restored
from tests.support.histories import START, Writer, due

JOB = due(route=("a", "b"), stage="b", step=3, finished=(StageRun("a", 1, START, START, 1.5),), follows=Follows(9))


def newer(message: AnyJobMessage, **unknown: Any) -> bytes:
    """Return the JSON of this message as a newer release writes it."""
    fields = json.loads(messages.encode(message))
    for stage_run in fields.get("finished", []):
        stage_run["files"] = {"frames": [1, 2]}
    return json.dumps({**unknown, **fields}, indent=1).encode()


def failed(job: Due) -> Failed:
    return Failed(**spec_of(job, JobMessage), step=4, at=START, stage="b", attempt=0, error="x", finished=job.finished)


def test_the_unknown_fields_of_the_job_and_of_its_fields_stay() -> None:
    stored = newer(JOB, labels={"source": "é", "size": 123456789012345678901234567890}, entered=2)
    patched = json.loads(patches.patched(failed(JOB), JOB, stored))
    assert patched["labels"] == {"source": "é", "size": 123456789012345678901234567890}
    assert (patched["entered"], patched["event"], patched["step"]) == (2, "failed", 4)
    assert patched["finished"] == json.loads(stored)["finished"]
    assert not {"reason", "follows"} & patched.keys(), "a failed job is not due, and this one follows nothing"


def test_what_was_restored_keeps_them_too() -> None:
    row = Unfinished(JOB.job_id, 3, 30, True, START, 2, False)
    stored = newer(JOB, labels={"a": 1})
    patched = json.loads(patches.patched(restored(JOB, row), JOB, stored))
    assert (patched["labels"], patched["step"], patched["reason"]) == ({"a": 1}, 4, "restored")


def test_params_and_outputs_stay_byte_for_byte() -> None:
    params, output = b'{ "source": "\\u00e9", "size": 1.50 }', b'[1.0, {"a" : 123456789012345678901234567890}]'
    job = due(
        stage="b",
        step=3,
        route=("a", "b"),
        params=msgspec.Raw(params),
        finished=(StageRun("a", 1, START, START, 1.5, msgspec.Raw(output)),),
    )
    row = Unfinished(job.job_id, 3, 30, True, START, 2, False)
    for successor in (failed(job), restored(job, row)):
        patched = messages.decode_stored(patches.patched(successor, job, messages.encode(job)))
        assert (bytes(patched.params), bytes(patched.finished[0].output)) == (params, output)


@given(st.data())
def test_the_patched_message_is_the_successor_for_every_reader(data: st.DataObject) -> None:
    url = data.draw(st.none() | st.just("https://shop.example"))
    job = msgspec.structs.replace(Writer().due, callback_url=url, attempts=data.draw(st.integers(0, 3)))
    for successor in (failed(job), restored(job, Unfinished(job.job_id, 0, 5, True, START, 2, False))):
        for stored in (messages.encode(job), newer(job, labels=1)):
            assert messages.decode_stored(patches.patched(successor, job, stored)) == successor


@pytest.mark.parametrize(
    "unknown",
    [b'"\xff"', b"1e999", b'"\\ud800"', b'"\\u0000"', b"[" * 2000 + b"]" * 2000],
    ids=["not UTF-8", "no number", "half a character", "a NUL", "too deep"],
)
def test_an_unknown_field_that_postgres_could_not_query_is_not_kept(unknown: bytes) -> None:
    payload = messages.encode(JOB)[:-1] + b',"later":' + unknown + b"}"
    assert patches.to_keep(JOB, payload) == messages.encode(JOB)


def test_any_other_payload_is_kept_as_it_arrived() -> None:
    for payload in (messages.encode(JOB), newer(JOB, labels=[1, 2])):
        assert patches.to_keep(JOB, payload) == payload


@pytest.mark.parametrize("unknown", [{}, {"labels": [{"params": 1}], "entered": 1.5}])
def test_params_are_not_kept_in_the_message_and_what_else_has_that_name_is(unknown: dict[str, Any]) -> None:
    output = msgspec.Raw(b'{"params": {"a" : 1.50}}')
    finished = (StageRun("a", 1, START, START, 1.5, output),)
    job = msgspec.structs.replace(JOB, finished=finished, params=msgspec.Raw(b'{"n":1.50,"params":[1]}'))
    payload = messages.encode(job)[:-1] + b"".join(
        b",%b" % json.dumps({k: v}).encode()[1:-1] for k, v in unknown.items()
    )
    kept = patches.to_keep(job, payload + b"}")
    assert "params" not in json.loads(kept)
    assert messages.decode_stored(kept) == msgspec.structs.replace(job, params=messages.NOTHING)
    assert b'"output":{"params": {"a" : 1.50}}' in kept
    assert {name: json.loads(kept).get(name) for name in unknown} == unknown
    assert messages.decode_stored(patches.whole(kept.decode(), bytes(job.params).decode())) == job
    broken = payload + b',"later":1e999}'
    assert patches.to_keep(job, broken) == messages.encode(msgspec.structs.replace(job, params=messages.NOTHING))


def test_the_columns_of_a_row_make_the_whole_message_again() -> None:
    params = b'{"source":"\xc3\xa9","n":1.50,"a": [ 1,2 ]}'
    job = msgspec.structs.replace(JOB, params=msgspec.Raw(params))
    alone = newer(JOB, entered=2)
    made = patches.whole(alone.decode(), params.decode())
    assert bytes(messages.decode_stored(made).params) == params
    assert json.loads(made) == {**json.loads(alone), "params": json.loads(params)}
    assert patches.whole(alone.decode(), None) == alone, "a job without params"
    kept_whole = newer(job, entered=2)
    assert patches.whole(kept_whole.decode(), None) == kept_whole, "a row of a store that did not separate them"
    both = patches.whole(kept_whole.decode(), params.decode())
    assert (both.count(b'"params"'), bytes(messages.decode_stored(both).params)) == (1, params)


@pytest.mark.parametrize("message", ["[]", "null", '"x"'])
def test_a_row_whose_message_is_no_object_is_unusable(message: str) -> None:
    with pytest.raises(UnusableMessage):
        patches.whole(message, "{}")
