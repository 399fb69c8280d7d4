"""The message that follows a delivery."""

import time
from datetime import timedelta

import msgspec
import pytest

from heimdex_contracts import messages
from heimdex_contracts.lifecycle import merge, snapshot
from heimdex_contracts.messages import Completed, Due, Follows
from heimdex_stage_worker.transitions import Ended, completed_or_next, failed, handed_back
from tests.support.histories import PIPELINE, due

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def ended(job: Due, attempt: int = 1, percent: int = 20, seconds: float = 2.0, ran: bool = True) -> Ended:
    started_at = max(messages.now(), job.at)
    return Ended(attempt, 17, "$JS.ACK.some", started_at, time.monotonic() - seconds, percent, ran)


def test_a_finished_stage_hands_over_to_the_next_with_the_finished_stages() -> None:
    job = due(trace=TRACE, fail_at_stage="indexing")
    following = completed_or_next(job, PIPELINE, ended(job, attempt=2))
    assert isinstance(following, Due)
    assert (following.stage, following.reason, following.step, following.attempts) == ("analyzing", "handed_over", 1, 0)
    assert (following.started, following.progress, following.fail_at_stage) == (True, 33, "indexing")
    assert following.follows == Follows(17, "$JS.ACK.some")
    assert (following.job_id, following.type, following.created_at) == (job.job_id, job.type, job.created_at)
    (stage_run,) = following.finished
    assert (stage_run.stage, stage_run.attempt) == ("extracting", 2)
    assert stage_run.seconds == pytest.approx(2, abs=1)
    assert following.trace is not None
    assert following.trace.split("-")[1] == TRACE.split("-")[1]
    assert following.trace != TRACE


def test_the_last_stage_completes_the_job_with_its_stages_and_its_duration() -> None:
    job: Due | Completed = due()
    for _ in PIPELINE.stages:
        assert isinstance(job, Due)
        job = completed_or_next(job, PIPELINE, ended(job))
    assert isinstance(job, Completed)
    assert (job.step, job.progress) == (3, 100)
    result = msgspec.json.decode(job.result)
    assert list(result) == ["stages_completed", "total_duration_seconds", "output"]
    assert result["stages_completed"] == ["extracting", "analyzing", "indexing"]
    assert result["total_duration_seconds"] >= 6
    assert result["output"] is None


def test_the_duration_is_no_less_than_the_work_when_the_clocks_disagree() -> None:
    future = messages.now() + timedelta(hours=1)
    job = due(stage="indexing", created_at=future, at=future)
    done = completed_or_next(job, PIPELINE, ended(job, seconds=5))
    assert isinstance(done, Completed)
    assert msgspec.json.decode(done.result)["total_duration_seconds"] >= 5


def test_a_successor_is_never_written_before_the_message_that_it_follows() -> None:
    future = messages.now() + timedelta(hours=1)
    job = due(created_at=future, at=future)
    held = ended(job)
    for following in (completed_or_next(job, PIPELINE, held), failed(job, held, "oh"), handed_back(job, held)):
        assert following.at >= job.at


def test_a_failed_job_keeps_its_stage_its_error_and_its_progress() -> None:
    job = due(stage="analyzing", step=1, progress=33, started=True)
    message = failed(job, ended(job, attempt=4, percent=50), "The stage analyzing failed: oh")
    assert (message.step, message.stage, message.attempt, message.progress) == (2, "analyzing", 4, 50)
    assert message.error == "The stage analyzing failed: oh"
    assert message.started_at is not None
    assert message.seconds is not None


def test_a_job_failed_by_a_worker_that_ran_no_attempt_has_no_attempt_times() -> None:
    job = due(stage="analyzing", step=1, progress=33, started=True)
    message = failed(job, ended(job, attempt=5, percent=60, ran=False), "The stage analyzing failed: worker lost")
    assert (message.started_at, message.seconds, message.progress) == (None, None, 60)


def test_a_hand_back_repeats_the_work_without_counting_the_interrupted_attempt() -> None:
    job = due(stage="analyzing", step=1, progress=33, started=True)
    again = handed_back(job, ended(job, attempt=3, percent=60))
    assert (again.step, again.stage, again.reason, again.attempts, again.progress) == (
        2,
        "analyzing",
        "handed_back",
        2,
        60,
    )
    assert again.finished == job.finished


def test_a_job_handed_back_before_an_attempt_began_is_still_pending() -> None:
    job = due()
    assert snapshot(handed_back(job, ended(job, percent=0, ran=False))).status == "pending"
    assert snapshot(handed_back(job, ended(job, percent=0))).status == "processing"


def test_every_successor_has_the_callback_url() -> None:
    job = due(callback_url="https://shop.example/hooks")
    held = ended(job)
    for following in (completed_or_next(job, PIPELINE, held), failed(job, held, "oh"), handed_back(job, held)):
        assert following.callback_url == "https://shop.example/hooks"
    assert b"callback" not in messages.encode(handed_back(due(), held)), "a job without one pays nothing"


def test_every_successor_outranks_its_predecessor_and_its_ticks() -> None:
    job = due(started=True)
    tick = messages.Progress(
        job_id=job.job_id,
        type=job.type,
        step=0,
        stage="extracting",
        attempt=4,
        progress=32,
        at=job.at,
        created_at=job.at,
    )
    latest = merge(snapshot(job), snapshot(tick))
    held = ended(job, attempt=4)
    for following in (completed_or_next(job, PIPELINE, held), failed(job, held, "oh"), handed_back(job, held)):
        assert snapshot(following).rank > latest.rank


def test_every_successor_has_the_same_tenant() -> None:
    job = due(tenant="acme")
    for following in (completed_or_next(job, PIPELINE, ended(job)), failed(job, ended(job), "oh")):
        assert following.tenant == "acme"
    assert handed_back(job, ended(job)).tenant == "acme"


def test_a_worker_of_another_deploy_hands_over_along_the_route_of_the_message() -> None:
    job = due(route=("extracting", "checking", "analyzing", "indexing", "publishing"))
    following = completed_or_next(job, PIPELINE, ended(job))
    assert isinstance(following, Due)
    assert (following.stage, following.route) == ("checking", job.route)
    last_of_ours = due(stage="indexing", route=job.route)
    following = completed_or_next(last_of_ours, PIPELINE, ended(last_of_ours))
    assert isinstance(following, Due)
    assert following.stage == "publishing"


def test_the_first_hand_over_of_a_message_without_a_route_writes_it() -> None:
    job = due()
    assert job.route == ()
    assert completed_or_next(job, PIPELINE, ended(job)).route == PIPELINE.stage_names


def test_an_output_is_in_the_hand_over_and_the_last_one_in_the_result_only() -> None:
    params = msgspec.Raw(b'{"source":"a"}')
    job: Due | Completed = due(params=params)
    for number in range(len(PIPELINE.stages)):
        assert isinstance(job, Due)
        job = completed_or_next(job, PIPELINE, ended(job), msgspec.Raw(b"[%d]" % number))
        job = again(job)
    assert isinstance(job, Completed)
    assert [bytes(run.output) for run in job.finished] == [b"[0]", b"[1]", b""]
    assert bytes(job.result).endswith(b'"output":[2]}')
    assert messages.encode(job).count(b"[2]") == 1
    assert bytes(job.params) == bytes(params)


def test_a_stage_without_an_output_costs_no_byte_and_the_result_has_a_null() -> None:
    following = completed_or_next(due(), PIPELINE, ended(due()))
    assert b"output" not in messages.encode(following)
    last = due(stage="indexing", step=2, started=True)
    done = again(completed_or_next(last, PIPELINE, ended(last)))
    assert isinstance(done, Completed)
    assert bytes(done.result).endswith(b'"output":null}')


@pytest.mark.parametrize("end", ["failed", "handed back"])
def test_a_failure_and_a_hand_back_keep_params_and_outputs(end: str) -> None:
    first = due(params=msgspec.Raw(b'{"source":"a"}'))
    job = again(completed_or_next(first, PIPELINE, ended(first), msgspec.Raw(b'{"frames":7}')))
    assert isinstance(job, Due)
    message = failed(job, ended(job), "oh") if end == "failed" else handed_back(job, ended(job))
    assert (bytes(again(message).params), bytes(again(message).finished[0].output)) == (
        b'{"source":"a"}',
        b'{"frames":7}',
    )


def again(message: messages.AnyJobMessage) -> messages.AnyJobMessage:
    """Return the message as the next process decodes it."""
    return messages.decode_stored(messages.encode(message))
