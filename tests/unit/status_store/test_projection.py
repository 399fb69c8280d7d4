"""The rows that the events of one batch give."""

from functools import reduce

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts import messages
from heimdex_contracts.history import EventRow, event_rows
from heimdex_contracts.lifecycle import merge, snapshot
from heimdex_contracts.messages import NOTHING, AnyMessage, AttemptFailed, Completed, Progress
from heimdex_status_store.projection import job_rows
from tests.support.histories import START, Writer, run_of_a_job, shuffled


@st.composite
def mixed_jobs(draw: st.DrawFn) -> list[AnyMessage]:
    """Events of several jobs in any order, some missing, some twice."""
    jobs = draw(st.lists(run_of_a_job(ended=False), min_size=1, max_size=4))
    events = [event for job in jobs for event in job]
    return draw(st.lists(st.sampled_from(events), min_size=1, max_size=30))


@given(mixed_jobs())
def test_job_rows_are_one_a_job_sorted_by_id_and_hold_the_merge_of_its_events(events: list[AnyMessage]) -> None:
    rows = job_rows(events)
    ids = [row.job.job_id for row in rows]
    assert ids == sorted({event.job_id for event in events})
    for row in rows:
        own = [event for event in events if event.job_id == row.job.job_id]
        assert row.job == reduce(merge, map(snapshot, own))
        assert row.attempt_only == all(isinstance(event, Progress | AttemptFailed) for event in own)
        on_jobs = [event for event in own if not isinstance(event, Progress | AttemptFailed)]
        if on_jobs:
            newest = max(on_jobs, key=lambda event: event.step)
            # Nothing follows a completed job, so nobody asks for its message.
            assert row.message == (None if isinstance(newest, Completed) else messages.encode(newest))
        else:
            assert row.message is None


def test_no_events_make_no_rows() -> None:
    assert job_rows([]) == []
    assert event_rows([]) == []


def test_event_rows_are_one_for_everything_but_ticks() -> None:
    writer = Writer()
    writer.tick(0.5)
    writer.fail_attempt()
    writer.finish_stage()
    writer.hand_back()
    writer.finish_stage()
    writer.finish_stage()
    rows = event_rows(writer.events)
    assert [(row.step, row.attempt, row.kind, row.stage) for row in rows] == [
        (0, 0, "submitted", "extracting"),
        (0, 1, "attempt_failed", "extracting"),
        (1, 0, "handed_over", "analyzing"),
        (2, 0, "handed_back", "analyzing"),
        (3, 0, "handed_over", "indexing"),
        (4, 0, "completed", "indexing"),
    ]


def test_an_event_row_has_the_attempt_that_the_event_ended() -> None:
    writer = Writer()
    writer.fail_attempt()
    writer.finish_stage()
    writer.fail()
    submitted, attempt, handed_over, failed = event_rows(writer.events)
    assert submitted.ended_stage is None
    assert (attempt.ended_stage, attempt.ended_attempt, attempt.error, attempt.delay_seconds) == (
        "extracting",
        1,
        "oh",
        1,
    )
    assert attempt.seconds is not None
    assert (handed_over.ended_stage, handed_over.ended_attempt) == ("extracting", 2)
    assert (handed_over.seconds, handed_over.started_at) == (0.25, writer.events[0].at)
    assert (failed.ended_stage, failed.error) == ("analyzing", "The stage analyzing failed: oh")


@given(run_of_a_job())
def test_the_history_has_one_row_per_key_so_that_a_repeat_changes_nothing(events: list[AnyMessage]) -> None:
    def key(row: EventRow) -> tuple[str, int, int]:
        return (row.job_id, row.step, row.attempt)

    assert len({key(row) for row in event_rows(events)}) == len(event_rows(events))
    assert set(event_rows([*events, *events])) == set(event_rows(events))


def test_the_first_of_two_terminal_events_of_a_run_wins_in_any_order() -> None:
    writer = Writer()
    writer.cancel()
    due, canceled = writer.events
    late = Completed(
        job_id=due.job_id,
        type=due.type,
        step=canceled.step + 2,
        created_at=START,
        at=START,
        stage="x",
        result=msgspec.Raw(b"{}"),
    )
    for events in ([due, canceled, late], [late, canceled, due]):
        (row,) = job_rows(events)
        assert row.job.status == "canceled"
        assert row.message == messages.encode(canceled)


def json_values() -> st.SearchStrategy[msgspec.Raw]:
    values = st.recursive(st.none() | st.integers(0, 9) | st.text("aé\n", max_size=3), st.lists, max_leaves=3)
    return values.map(lambda value: msgspec.Raw(msgspec.json.encode({"value": value}))) | st.just(NOTHING)


@given(st.data())
def test_a_row_has_params_and_outputs_whatever_the_order_of_its_events(data: st.DataObject) -> None:
    params, output = data.draw(json_values()), data.draw(json_values())
    events = data.draw(run_of_a_job(params=params, output=output))
    (row,), (mixed,) = job_rows(events), job_rows(data.draw(shuffled(events)))
    assert mixed == row
    assert (row.job.params, row.is_new) == (params, True)
    assert row.message is None or b"params" not in row.message
    completed = isinstance(events[-1], Completed)
    if completed and output:
        returned = msgspec.json.decode(row.outputs or b"", type=dict[str, msgspec.Raw])
        assert returned == dict.fromkeys(("extracting", "analyzing"), output)
    else:
        assert row.outputs is None


def test_only_a_batch_with_the_first_message_is_that_of_a_new_job() -> None:
    writer = Writer(params=msgspec.Raw(b"{}"))
    writer.tick(0.5)
    writer.fail_attempt()
    writer.finish_stage()
    for number in range(1, len(writer.events)):
        (row,) = job_rows(writer.events[number:])
        assert not row.is_new
        (row,) = job_rows([writer.events[number], writer.events[0]])
        assert row.is_new


def test_the_last_stages_output_is_in_the_result_only() -> None:
    writer = Writer(output=msgspec.Raw(b"[1]"))
    while writer.finish_stage():
        pass
    completed = writer.events[-1]
    assert isinstance(completed, Completed)
    finished = tuple(msgspec.structs.replace(run, output=writer.output) for run in completed.finished)
    (row,) = job_rows([msgspec.structs.replace(completed, finished=finished)])
    assert row.outputs == b'{"extracting":[1],"analyzing":[1]}'
