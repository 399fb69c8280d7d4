"""A job's own fields are the same in each of its messages, and encoded to the same bytes: its parameters too."""

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts import callbacks, messages
from heimdex_contracts.job_spec import OfJob, spec_fields, spec_of
from heimdex_contracts.lifecycle import snapshot
from heimdex_contracts.messages import (
    AnyJobMessage,
    AttemptFailed,
    Canceled,
    Completed,
    Due,
    Failed,
    JobMessage,
    Progress,
    StageRun,
)
from heimdex_gateway.jobs.cancel import canceled
from heimdex_gateway.jobs.idempotency import IdempotencyRecord
from heimdex_gateway.jobs.retry import retried
from heimdex_stage_worker.transitions import Ended, completed_or_next, failed, handed_back
from heimdex_status_store.queries import Unfinished
from heimdex_status_store.reconciler import restored
from tests.support.histories import PIPELINE, START, due

CORPUS = [json.loads(line) for line in (Path(__file__).parent / "corpus" / "messages.jsonl").read_text().splitlines()]
#: What each message says for itself; every other field of a JobMessage must come out of every transition as it went in.
OWN = {"step", "run", "at", "progress", "not_before", "finished", "follows", "trace"}


class Params(msgspec.Struct):
    """What a retry from the start validates the parameters against. They stay as they were stored."""

    value: Any = None


FROM_THE_START = "retry from the start"


def raw_json() -> st.SearchStrategy[msgspec.Raw]:
    """Draw JSON as a caller may have written it: with spaces, escapes, numbers in any form, and keys in any order."""
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5)
    numbers = st.sampled_from(["0", "-0.0", "1.50", "1E+2", "18446744073709551615"])
    quoted = texts.flatmap(lambda text: st.sampled_from([json.dumps(text), json.dumps(text, ensure_ascii=False)]))
    values = st.recursive(
        st.sampled_from(["true", "false", "null"]) | numbers | quoted,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
            | st.dictionaries(quoted, inner, max_size=3).map(
                lambda items: "{" + ",".join(f"{key} : {item}" for key, item in items.items()) + "}"
            )
        ),
        max_leaves=6,
    )
    return values.map(lambda text: msgspec.Raw(text.encode()))


#: By the type of a field: values that are not its default.
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    messages.JobId: st.uuids().map(str),
    messages.Name: st.from_regex(r"[a-z]{1,64}", fullmatch=True),
    messages.Name | None: st.from_regex(r"[a-z]{1,64}", fullmatch=True),
    messages.Text | None: st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1),
    tuple[messages.RouteName, ...]: st.lists(st.from_regex(r"[a-z]{1,64}", fullmatch=True), min_size=1).map(
        lambda others: (*PIPELINE.stage_names, *others)
    ),
    msgspec.Raw: raw_json().map(lambda value: msgspec.Raw(b'{ "value" : %b}' % bytes(value))),
    messages.Moment: st.datetimes(min_value=START.replace(tzinfo=None)).map(lambda at: at.replace(tzinfo=START.tzinfo)),
}


def submitted() -> st.SearchStrategy[Due]:
    """Draw a new job with a value for each of its own fields, by introspection."""
    types = {field.name: field.type for field in msgspec.structs.fields(Due)}
    own = {name: _values(types[name]) for name in spec_fields(Due)}
    return st.fixed_dictionaries(own).map(
        lambda spec: Due(**spec, step=0, at=START, stage=PIPELINE.first_stage, reason="submitted")
    )


def _values(of: Any) -> st.SearchStrategy[Any]:
    return next((values for kind, values in VALUES.items() if of in (kind, OfJob[kind])), st.from_type(of))


def held(percent: int = 20) -> Ended:
    return Ended(1, 17, "$JS.ACK.some", START + timedelta(seconds=1), 0.0, percent, True)


def transitions(job: Due) -> dict[str, AnyJobMessage | AttemptFailed | Progress]:
    """Return every message that can follow this one, and every message that can follow those."""
    end = failed(job, held(), "it failed")
    cancel = canceled(job, 7, snapshot(job))
    tick = Progress(**spec_of(job, Progress), step=0, stage=job.stage, attempt=1, progress=3, at=START)
    last = msgspec.structs.replace(job, stage=PIPELINE.stages[-1].name)
    row = Unfinished(job.job_id, 4, 30, True, START, 2, False)
    return {
        "hand-over": completed_or_next(job, PIPELINE, held()),
        "completion": completed_or_next(last, PIPELINE, held()),
        "hand-back": handed_back(job, held()),
        "failure": end,
        "cancel": cancel,
        "cancel of what runs": canceled(job, 7, snapshot(job), tick),
        "retry of a failed job": retried(end, 7, snapshot(end), PIPELINE),
        "retry of a canceled job, whose end left the stream": retried(cancel, None, snapshot(cancel), None),
        FROM_THE_START: retried(cancel, None, snapshot(cancel), dataclasses.replace(PIPELINE, params=Params), "start"),
        "restoration": restored(job, row),
        "firing, and what the streams and rows keep": messages.decode_stored(messages.encode(job)),
        "tick": tick,
    }


@given(submitted())
def test_the_jobs_own_fields_come_out_of_every_transition_as_they_went_in(job: Due) -> None:
    assert {name: getattr(job, name) for name in spec_fields(Due)} == spec_of(job, Due)
    for name, message in transitions(job).items():
        for field in spec_fields(type(message)):
            if (name, field) == (FROM_THE_START, "route"):
                assert getattr(message, field) == PIPELINE.stage_names  # of today
                continue
            assert getattr(message, field) == getattr(job, field), (name, field)
        if isinstance(message, JobMessage):
            assert params_in(messages.encode(message)) == params_in(messages.encode(job)) != b"", name


def params_in(payload: bytes) -> bytes:
    """Return the parameters as they stand in this message, b"" where it has none."""
    return bytes(msgspec.json.decode(payload, type=dict[str, msgspec.Raw]).get("params", b""))


def test_a_job_without_params_has_none_in_any_message_and_each_of_them_is_json() -> None:
    job = due(route=PIPELINE.stage_names)
    assert job.params is messages.NOTHING
    for name, message in transitions(job).items():
        assert "params" not in json.loads(messages.encode(message)), name


@given(raw_json(), raw_json())
def test_what_earlier_stages_returned_stays_until_a_retry_from_the_start(one: msgspec.Raw, other: msgspec.Raw) -> None:
    route = ("extracting", "silent", "analyzing", "indexing")
    finished = (
        StageRun("extracting", 1, START, START, 1.5, one),
        StageRun("silent", 1, START, START, 1.5),
        StageRun("analyzing", 2, START, START, 1.5, other),
    )
    for name, message in transitions(
        due(stage="indexing", started=True, step=3, route=route, finished=finished)
    ).items():
        if not isinstance(message, JobMessage):
            continue
        again = messages.decode_stored(messages.encode(message)).finished
        if name == FROM_THE_START:
            assert again == ()
            continue
        assert again[:3] == finished, name
        assert again[1].output is messages.NOTHING, "only this object is left out of the JSON"


def test_every_field_is_either_a_job_spec_field_or_a_known_message_field() -> None:
    assert set(spec_fields(JobMessage)) | OWN == set(JobMessage.__struct_fields__)
    assert not set(spec_fields(JobMessage)) & OWN
    for kind in (Due, Completed, Failed, Canceled):
        assert spec_fields(kind) == spec_fields(JobMessage)
    assert "fail_at_stage" in spec_fields(Due)
    assert set(spec_fields(AttemptFailed)) == set(spec_fields(Progress)) < set(spec_fields(Due))


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_messages_of_the_previous_release_are_decoded_and_encoded_to_the_same_bytes(number: int) -> None:
    subject, payload = CORPUS[number]["subject"], CORPUS[number]["payload"].encode()
    match subject.split(".")[1]:
        case "jobs":
            assert messages.encode(messages.decode_job(subject, payload)) == payload
        case "attempts":
            assert messages.encode(messages.decode_attempt(subject, payload)) == payload
        case "progress":
            assert messages.encode(messages.decode_progress(subject, payload)) == payload
        case "callbacks" if ".delivered." in subject:
            assert callbacks.encode(callbacks.decode_result(subject, payload)) == payload
        case "callbacks":
            assert callbacks.encode(callbacks.decode_work(subject, payload)) == payload
        case _:
            record = msgspec.json.decode(payload, type=IdempotencyRecord)
            assert msgspec.json.encode(record) == payload


def test_the_corpus_has_every_kind_of_message() -> None:
    seen = {line["subject"].split(".")[1] for line in CORPUS}
    assert seen == {"jobs", "attempts", "progress", "callbacks", "HEIMDEX_IDEMPOTENCY"}
    events = {json.loads(line["payload"]).get("event") for line in CORPUS}
    assert {"due", "completed", "failed", "canceled", "delivered"} <= events
