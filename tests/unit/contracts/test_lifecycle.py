"""Status is a maximum: the events of a job give the same state in any order."""

from datetime import timedelta
from functools import reduce

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts.lifecycle import TERMINAL, Snapshot, merge, snapshot
from heimdex_contracts.messages import NOTHING, AnyMessage, JobMessage
from tests.support.histories import START, Writer, due, run_of_a_job, shuffled

ORDER = {"pending": 0, "processing": 1, "completed": 2, "failed": 2, "canceled": 2}

Histories = tuple[list[AnyMessage], list[AnyMessage]]


PARAMS = msgspec.Raw(b'{"source":"https://films.example/a.mp4"}')
OUTPUT = msgspec.Raw(b'{"frames":[1,2]}')


@st.composite
def a_run_and_its_shuffle(draw: st.DrawFn) -> Histories:
    ended, forgetful = draw(st.booleans()), draw(st.booleans())
    params, output = draw(st.sampled_from([NOTHING, PARAMS])), draw(st.sampled_from([NOTHING, OUTPUT]))
    events = draw(run_of_a_job(ended=ended, forgetful=forgetful, params=params, output=output))
    return events, draw(shuffled(events))


def merged(events: list[AnyMessage]) -> Snapshot:
    return reduce(merge, map(snapshot, events))


@given(a_run_and_its_shuffle())
def test_merge_gives_the_same_for_any_order_and_repetition_of_a_runs_events(histories: Histories) -> None:
    in_order, mixed = histories
    assert merged(mixed) == merged(in_order)


@given(a_run_and_its_shuffle(), st.integers(0, 20))
def test_merge_gives_the_same_however_the_events_are_batched(histories: Histories, cut: int) -> None:
    in_order, mixed = histories
    parts = [part for part in (mixed[:cut], mixed[cut:]) if part]
    assert reduce(merge, [merged(part) for part in parts]) == merged(in_order)


@given(a_run_and_its_shuffle())
def test_status_progress_and_time_never_go_back_in_whatever_order_events_arrive(histories: Histories) -> None:
    for events in histories:
        seen = snapshot(events[0])
        for event in events[1:]:
            later = merge(seen, snapshot(event))
            assert later.rank >= seen.rank
            assert ORDER[later.status] >= ORDER[seen.status]
            assert later.progress >= seen.progress
            assert later.updated_at >= seen.updated_at
            assert later.created_at == seen.created_at
            if seen.ended:
                assert (later.status, later.stage, later.error) == (seen.status, seen.stage, seen.error)
            seen = later


@given(a_run_and_its_shuffle())
def test_a_snapshot_is_a_valid_api_response_whatever_was_merged(histories: Histories) -> None:
    seen = merged(histories[1])
    assert 0 <= seen.progress <= 100
    assert (seen.progress == 100) == (seen.status == "completed")
    assert (seen.result is not None) == (seen.status == "completed")
    assert (seen.error is not None) == (seen.status == "failed")
    assert seen.ended == (seen.status in TERMINAL)
    if seen.status == "pending":
        assert seen.stage is None
    if seen.status in {"processing", "failed"}:
        assert seen.stage is not None


@given(run_of_a_job("0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"), st.data())
def test_a_retried_job_shows_its_next_run_only_even_after_an_event_of_the_previous_run(
    first: list[AnyMessage], data: st.DataObject
) -> None:
    last = first[-1]
    second = data.draw(run_of_a_job(last.job_id, step=last.step + 1, run=2))
    mixed = data.draw(shuffled([*first, *second]))
    assert merged(mixed) == merged([*first, *second])
    assert merged(mixed).run == 2
    assert merged(mixed).status == merged(second).status
    assert merged(mixed).progress == merged(second).progress


@given(run_of_a_job(ended=False, params=PARAMS, output=OUTPUT), st.data())
def test_a_merge_keeps_the_params_and_the_outputs_that_a_tick_or_failed_attempt_lacks(
    events: list[AnyMessage], data: st.DataObject
) -> None:
    seen = merged(data.draw(shuffled(events)))
    last = [event for event in events if isinstance(event, JobMessage)][-1]
    assert (seen.params, seen.finished) == (PARAMS, last.finished)


def test_outputs_of_a_run_are_not_those_of_the_next_one() -> None:
    first, second = Writer(output=OUTPUT), Writer(run=2, step=4)
    first.finish_stage()
    first.fail()
    second.tick(0.1)
    tick_alone = merge(merged(first.events), snapshot(second.events[1]))
    assert (tick_alone.run, tick_alone.finished) == (2, None)


def test_rank_orders_by_step_then_attempt_then_progress() -> None:
    writer = Writer(forgetful=True)
    writer.tick(0.5)
    writer.fail_attempt()
    writer.tick(0.1)
    writer.finish_stage()
    submitted, tick, _, failed, second_tick, handed_over = map(snapshot, writer.events)
    assert submitted.rank < tick.rank <= failed.rank < second_tick.rank < handed_over.rank


def test_a_later_attempts_lower_progress_does_not_lower_the_jobs_progress() -> None:
    writer = Writer(forgetful=True)
    writer.tick(0.9)
    writer.fail_attempt()
    writer.tick(0.1)
    assert merged(writer.events).progress == snapshot(writer.events[1]).progress
    assert merged(writer.events).attempt == 2


def test_a_job_is_pending_without_a_stage_until_a_worker_has_begun() -> None:
    assert (snapshot(due()).status, snapshot(due()).stage) == ("pending", None)


def test_a_job_that_is_handed_back_after_it_started_stays_processing() -> None:
    writer = Writer()
    writer.tick(0.5)
    writer.hand_back()
    assert (merged(writer.events).status, merged(writer.events).stage) == ("processing", "extracting")


def test_an_event_written_before_its_job_was_created_does_not_move_updated_at_before_created_at() -> None:
    early = due(at=START - timedelta(hours=1))
    assert snapshot(early).updated_at == START


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_progress_is_below_100_until_completed(fraction: float) -> None:
    writer = Writer()
    writer.finish_stage()
    writer.finish_stage()
    writer.tick(fraction)
    assert merged(writer.events).progress < 100
    writer.finish_stage()
    assert (merged(writer.events).progress, merged(writer.events).status) == (100, "completed")


def test_a_tick_merged_with_an_earlier_hand_over_does_not_hide_the_outputs_of_a_later_one() -> None:
    writer = Writer(output=OUTPUT)
    submitted = snapshot(writer.due)
    writer.finish_stage()
    handed_over = snapshot(writer.due)
    writer.tick(0.5)
    tick = snapshot(writer.events[-1])
    for states in ((submitted, tick, handed_over), (submitted, handed_over, tick), (tick, handed_over, submitted)):
        assert reduce(merge, states).finished == handed_over.finished
