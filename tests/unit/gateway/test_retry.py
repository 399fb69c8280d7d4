"""The first message of a job's next run: its route, its first stage and what it keeps of the run before."""

from datetime import timedelta

import msgspec
import pytest

from heimdex_contracts.lifecycle import snapshot
from heimdex_contracts.messages import NOTHING, Canceled, Due, Failed, StageRun
from heimdex_contracts.pipelines import Pipeline, Stage
from heimdex_gateway.jobs.change import Conflict
from heimdex_gateway.jobs.retry import From, retried
from tests.support.histories import START, due


def pipeline(*stages: str) -> Pipeline:
    return Pipeline("film", tuple(Stage(name, 1, "some.module:function") for name in stages))


def run(stage: str) -> StageRun:
    return StageRun(stage, 1, START, START, 1.0)


def failed(*route: str, at: str, finished: tuple[str, ...]) -> Failed:
    job = due(type="film", route=route, stage=at, run=3, step=7, finished=tuple(map(run, finished)))
    fields = {name: getattr(job, name) for name in ("job_id", "type", "created_at", "at", "route", "run", "finished")}
    return Failed(**fields, step=8, stage=at, attempt=2, error=f"{at} failed", progress=40)


def again(last: Failed | Canceled, today: Pipeline | None, start_from: From = "failed") -> Due:
    return retried(last, 17, snapshot(last), today, start_from)


def shape(message: Due) -> tuple[str, tuple[str, ...], list[str], int]:
    return message.stage, message.route, [entry.stage for entry in message.finished], message.progress


LAST = failed("a", "b", "c", "d", at="c", finished=("a", "b"))


@pytest.mark.parametrize(
    "today",
    [
        pytest.param(pipeline("a", "b", "c", "d"), id="the same"),
        pytest.param(pipeline("a", "b", "c", "d", "e"), id="a stage added"),
        pytest.param(pipeline("a", "c", "d"), id="a finished stage removed"),
        pytest.param(pipeline("a", "b", "d"), id="the stage that failed removed"),
        pytest.param(pipeline("a", "b", "x", "d"), id="the stage that failed renamed"),
        pytest.param(pipeline("d", "c", "b", "a"), id="reordered"),
        pytest.param(None, id="the type removed"),
    ],
)
def test_a_retry_from_the_failed_stage_keeps_the_jobs_own_route(today: Pipeline | None) -> None:
    message = again(LAST, today)
    assert (message.stage, message.route, message.finished) == ("c", ("a", "b", "c", "d"), LAST.finished)
    assert (message.run, message.step, message.reason, message.started) == (4, 9, "retried", False)
    assert message.progress == 50


def test_a_retry_from_the_start_takes_the_route_of_today() -> None:
    assert shape(again(LAST, pipeline("x", "a", "c"), "start")) == ("x", ("x", "a", "c"), [], 0)


def test_a_retry_from_the_start_of_a_type_that_was_removed_is_a_conflict() -> None:
    with pytest.raises(Conflict, match=r"does not have the job type 'film' any more.*from=failed"):
        again(LAST, None, "start")


class Film(msgspec.Struct):
    """Parameters of a later deploy."""

    source: str
    speed: int = 1


SENT = msgspec.Raw(b'{"source":"a"}')


@pytest.mark.parametrize("start_from", ["failed", "start"])
def test_a_retry_keeps_the_params_as_they_were_stored(start_from: From) -> None:
    last = msgspec.structs.replace(LAST, params=SENT)
    today = Pipeline("film", pipeline("a", "b", "c").stages, params=Film)
    assert bytes(again(last, today, start_from).params) == bytes(SENT), "the default of today is not written into it"


def test_only_a_retry_from_the_failed_stage_keeps_outputs() -> None:
    done = tuple(msgspec.structs.replace(run(stage), output=SENT) for stage in ("a", "b"))
    last = msgspec.structs.replace(LAST, finished=done)
    assert again(last, None).finished == done
    assert again(last, pipeline("a", "b", "c"), "start").finished == ()


@pytest.mark.parametrize(
    ("params", "struct", "field"),
    [
        (b'{"source":1}', Film, "params.source"),
        (b'{"source":"a","lost":1}', Film, "params.lost"),
        (b"", Film, "params.source"),
        (b'{"source":"a"}', None, "params"),
    ],
    ids=["another type", "one that is gone", "none before", "none any more"],
)
def test_a_retry_from_the_start_is_a_conflict_where_the_params_do_not_fit(
    params: bytes, struct: type[msgspec.Struct] | None, field: str
) -> None:
    last = msgspec.structs.replace(LAST, params=msgspec.Raw(params) if params else NOTHING)
    today = Pipeline("film", pipeline("a", "b", "c").stages, params=struct)
    with pytest.raises(Conflict, match="from=failed") as caught:
        again(last, today, "start")
    assert caught.value.field == field
    assert again(last, today).params == last.params


@pytest.mark.parametrize("stage", ["c", None])
def test_a_canceled_job_continues_where_it_was_canceled_or_begins_its_route(stage: str | None) -> None:
    fields = {name: getattr(LAST, name) for name in ("job_id", "type", "created_at", "route", "run", "finished")}
    last = Canceled(**fields, step=8, at=START + timedelta(seconds=9), stage=stage)
    expected = ("c", LAST.finished) if stage else ("a", ())
    message = again(last, None)
    assert ((message.stage, message.finished), message.route) == (expected, LAST.route)


class TestWithoutARoute:
    """Messages of a release before routes."""

    LAST = msgspec.structs.replace(LAST, route=())

    def test_the_pipeline_of_today_is_the_route(self) -> None:
        assert shape(again(self.LAST, pipeline("a", "b", "c")))[:3] == ("c", ("a", "b", "c"), ["a", "b"])

    def test_a_stage_that_is_gone_means_the_start(self) -> None:
        assert shape(again(self.LAST, pipeline("a", "b"))) == ("a", ("a", "b"), [], 0)

    def test_what_finished_after_the_failed_stage_in_a_new_order_is_done_again(self) -> None:
        assert shape(again(self.LAST, pipeline("b", "c", "a")))[:3] == ("c", ("b", "c", "a"), ["b"])

    @pytest.mark.parametrize("start_from", ["failed", "start"])
    def test_a_type_that_was_removed_is_a_conflict(self, start_from: From) -> None:
        with pytest.raises(Conflict, match="film"):
            again(self.LAST, None, start_from)
