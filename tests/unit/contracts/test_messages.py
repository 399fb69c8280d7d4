"""The wire format: round trips, other versions, and malformed payloads of every kind."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import UnusableMessage
from heimdex_contracts.lifecycle import snapshot
from heimdex_contracts.messages import AnyMessage, AttemptFailed, Canceled, Completed, Due, Progress
from tests.support.histories import run_of_a_job

ID = "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"
TIME = "2025-10-28T12:00:00.000001Z"
CORE = {"job_id": ID, "type": "mock_process", "step": 0, "created_at": TIME, "at": TIME}
PLACE = {**CORE, "stage": "analyzing", "attempt": 2}

# As the first version writes them. A version that cannot read these must not be deployed beside it.
FIRST_VERSION: list[tuple[str, dict[str, Any]]] = [
    ("heimdex.jobs.extracting", {"event": "due", **CORE, "stage": "extracting", "reason": "submitted"}),
    (
        "heimdex.jobs.completed",
        {
            "event": "completed",
            **CORE,
            "stage": "indexing",
            "result": {"stages_completed": [], "total_duration_seconds": 6.1},
        },
    ),
    ("heimdex.jobs.failed", {"event": "failed", **PLACE, "error": "The stage analyzing failed: oh"}),
    ("heimdex.jobs.canceled", {"event": "canceled", **CORE}),
    ("heimdex.attempts.analyzing", {**PLACE, "error": "oh", "delay_seconds": 1, "started_at": TIME}),
    ("heimdex.progress.analyzing", {**PLACE, "progress": 45}),
]
DECODERS = {
    "jobs": messages.decode_job,
    "attempts": messages.decode_attempt,
    "progress": messages.decode_progress,
}


def decode(subject: str, payload: bytes) -> AnyMessage:
    return DECODERS[subject.split(".")[1]](subject, payload)


def subject_of(event: AnyMessage) -> str:
    match event:
        case Progress():
            return subjects.progress_subject(event.stage, event.job_id)
        case AttemptFailed():
            return subjects.attempt_subject(event.stage, event.job_id)
        case _:
            return subjects.job_subject(messages.token(event), event.job_id)


@pytest.mark.parametrize(("prefix", "payload"), FIRST_VERSION)
def test_a_message_without_a_tenant_belongs_to_the_default_tenant_and_stays_as_short(
    prefix: str, payload: dict[str, Any]
) -> None:
    event = decode(f"{prefix}.{ID}", json.dumps(payload).encode())
    assert event.tenant == messages.DEFAULT_TENANT
    assert b"tenant" not in messages.encode(event)


@pytest.mark.parametrize(("prefix", "payload"), FIRST_VERSION)
def test_a_message_keeps_its_tenant_and_its_snapshot_has_it(prefix: str, payload: dict[str, Any]) -> None:
    event = decode(f"{prefix}.{ID}", json.dumps({**payload, "tenant": "acme"}).encode())
    again = decode(f"{prefix}.{ID}", messages.encode(event))
    assert (again.tenant, snapshot(again).tenant) == ("acme", "acme")


@given(run_of_a_job())
def test_every_event_is_the_same_after_a_round_trip(events: list[AnyMessage]) -> None:
    for event in events:
        assert decode(subject_of(event), messages.encode(event)) == event


@pytest.mark.parametrize(("prefix", "payload"), FIRST_VERSION)
def test_a_message_of_the_first_version_is_read(prefix: str, payload: dict[str, Any]) -> None:
    event = decode(f"{prefix}.{ID}", json.dumps(payload).encode())
    assert event.job_id == ID
    assert event.at == datetime(2025, 10, 28, 12, 0, 0, 1, tzinfo=UTC)
    assert event.run == 1


@pytest.mark.parametrize(("prefix", "payload"), FIRST_VERSION)
def test_a_newer_versions_unknown_fields_are_skipped(prefix: str, payload: dict[str, Any]) -> None:
    newer = {**payload, "priority": 7, "labels": {"a": [1, 2]}}
    assert decode(f"{prefix}.{ID}", json.dumps(newer).encode()) == decode(
        f"{prefix}.{ID}", json.dumps(payload).encode()
    )


@pytest.mark.parametrize("key", sorted({key for _, payload in FIRST_VERSION for key in payload} - {"progress"}))
def test_a_message_without_a_required_field_is_unusable(key: str) -> None:
    for prefix, payload in FIRST_VERSION:
        if key in payload and not (payload.get("event") == "canceled" and key == "stage"):
            rest = {name: value for name, value in payload.items() if name != key}
            with pytest.raises(UnusableMessage):
                decode(f"{prefix}.{ID}", json.dumps(rest).encode())


RUBBISH = [
    pytest.param(b"", id="empty"),
    pytest.param(b" ", id="blank"),
    pytest.param(b"{", id="cut off"),
    pytest.param(b"null", id="null"),
    pytest.param(b"[]", id="array"),
    pytest.param(b"17", id="number"),
    pytest.param(b'"text"', id="string"),
    pytest.param(b"{}", id="no fields"),
    pytest.param(b"\x00\x01\x02", id="binary"),
    pytest.param(b"\xff\xfe", id="not UTF-8"),
    pytest.param(b'{"event":"due","job_id":"\xff"}', id="not UTF-8 in a string"),
    pytest.param(b"[" * 200_000, id="deep array"),
    pytest.param(b'{"result":' * 100_000, id="deep object"),
    pytest.param(b"x" * 1_000_000, id="a megabyte"),
    pytest.param(b'{"event":"unheard-of"}', id="unknown event"),
    pytest.param(b'{"event":7}', id="event of another type"),
]


@pytest.mark.parametrize("payload", RUBBISH)
@pytest.mark.parametrize("channel", DECODERS)
def test_malformed_payloads_are_unusable_and_the_reason_is_a_sentence(channel: str, payload: bytes) -> None:
    with pytest.raises(UnusableMessage, match=r"^the payload ") as caught:
        decode(f"heimdex.{channel}.extracting.{ID}", payload)
    assert len(str(caught.value)) < 1000


COMPLETED = {"event": "completed", **CORE, "stage": "indexing", "result": {}}


@pytest.mark.parametrize(
    "fields",
    [
        {"trace": "a\x00b"},
        {"follows": {"sequence": 1, "ack": "\x00"}},
        {"result": {"deep": [{"deeper": "\x00"}]}},
        {"result": {"na\x00me": 1}},
        {"unheard_of": ["\x00"]},
    ],
    ids=str,
)
def test_a_nul_anywhere_is_unusable(fields: dict[str, Any]) -> None:
    with pytest.raises(UnusableMessage, match="NUL"):
        decode(f"heimdex.jobs.completed.{ID}", json.dumps(COMPLETED | fields).encode())


def test_an_escaped_backslash_before_u0000_is_not_a_nul() -> None:
    event = decode(f"heimdex.jobs.completed.{ID}", json.dumps(COMPLETED | {"result": {"pattern": "\\u0000"}}).encode())
    assert isinstance(event, Completed)
    assert msgspec.json.decode(event.result) == {"pattern": "\\u0000"}


WRONG = [
    ("job_id", "not-a-uuid"),
    ("job_id", ID.upper()),
    ("job_id", ID + "\n"),
    ("job_id", 7),
    ("job_id", None),
    ("type", ""),
    ("type", "x" * 65),
    ("type", "nul\x00"),
    ("step", -1),
    ("step", 2**31),
    ("step", 1.5),
    ("step", "0"),
    ("step", True),
    ("run", -1),
    ("progress", 101),
    ("progress", -1),
    ("at", "2025-10-28T12:00:00"),
    ("at", "yesterday"),
    ("at", 1761652800),
    ("created_at", None),
    ("stage", ["analyzing"]),
    ("attempt", 2**31),
    ("error", "nul\x00"),
    ("error", None),
    ("delay_seconds", -0.5),
    ("result", None),
    ("result", [1]),
    ("reason", "because"),
    ("finished", [{"stage": "extracting"}]),
    ("follows", {"sequence": -1}),
    ("follows", {"sequence": 2**63}),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_of_the_wrong_kind_is_unusable(key: str, value: Any) -> None:
    tried = 0
    for prefix, payload in FIRST_VERSION:
        optional_in_jobs = key in {"run", "progress", "finished", "follows"} and "event" in payload
        if key in payload or optional_in_jobs:
            tried += 1
            with pytest.raises(UnusableMessage):
                decode(f"{prefix}.{ID}", json.dumps({**payload, key: value}).encode())
    assert tried


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_unusable_and_raise_nothing_else(payload: bytes) -> None:
    for channel in DECODERS:
        with pytest.raises(UnusableMessage):
            decode(f"heimdex.{channel}.extracting.{ID}", payload)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(FIRST_VERSION), st.data())
def test_a_message_with_any_field_replaced_is_read_or_unusable(
    example: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    prefix, payload = example
    key = data.draw(st.sampled_from(sorted({*payload, "follows", "finished", "trace", "run", "progress"})))
    changed = {**payload, key: data.draw(_JSON)}
    try:
        event = decode(f"{prefix}.{ID}", json.dumps(changed).encode())
    except UnusableMessage:
        return
    assert msgspec.json.decode(messages.encode(event))["job_id"] == ID


@pytest.mark.parametrize(("prefix", "payload"), FIRST_VERSION)
@pytest.mark.parametrize(
    "subject",
    [
        "{prefix}.11111111-7c1e-7d3a-9b62-3f1c2b7a9d10",
        "{prefix}.{id}.more",
        "{channel}.indexing.{id}",
        "{channel}.*.{id}",
        "{prefix}.",
    ],
)
def test_a_payload_on_the_subject_of_another_message_is_unusable(
    prefix: str, payload: dict[str, Any], subject: str
) -> None:
    wrong = subject.format(prefix=prefix, id=ID, channel=prefix.rpartition(".")[0])
    with pytest.raises(UnusableMessage, match="not of"):
        decode(wrong, json.dumps(payload).encode())


def test_a_cancel_of_a_job_that_had_not_started_has_no_stage() -> None:
    event = decode(f"heimdex.jobs.canceled.{ID}", json.dumps({"event": "canceled", **CORE}).encode())
    assert isinstance(event, Canceled)
    assert event.stage is None


def test_token_is_the_stage_of_a_due_job() -> None:
    payload = json.dumps({"event": "due", **CORE, "stage": "indexing", "reason": "handed_over"}).encode()
    event = messages.decode_job(f"heimdex.jobs.indexing.{ID}", payload)
    assert isinstance(event, Due)
    assert messages.token(event) == "indexing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ID, True),
        (ID.upper(), True),
        (ID.replace("-", ""), False),
        (f"{{{ID}}}", False),
        (f"urn:uuid:{ID}", False),
        (ID[:-1], False),
        (ID[:-1] + "g", False),
        ("", False),
        ("x" * 36, False),
        (ID[:8] + "٣" + ID[9:], False),
    ],
)
def test_is_job_id_accepts_uuids_in_canonical_form_only(text: str, expected: bool) -> None:
    assert messages.is_job_id(text) is expected
