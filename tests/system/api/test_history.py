"""GET /jobs/{id}/events: every hand-over and every attempt, with its times."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from heimdex_contracts import messages, subjects
from heimdex_contracts.messages import AttemptFailed
from tests.support.api import Api
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.conftest import Live
from tests.system.api.sse import entries, history

KEYS = ["id", "event", "run", "stage", "at", "ended", "error", "retry_in_seconds", "traceback"]


def summary(events: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(entry["id"], entry["event"], entry["stage"]) for entry in events]


def attempts(events: list[dict[str, Any]]) -> list[tuple[str, int] | None]:
    """Return the attempt that each entry ended."""
    return [
        None if entry["ended"] is None else (entry["ended"]["stage"], entry["ended"]["attempt"]) for entry in events
    ]


def check(events: list[dict[str, Any]]) -> None:
    """Assert what is true of every history."""
    for entry in events:
        assert list(entry) == KEYS
        if entry["ended"] is not None and entry["ended"]["started_at"] is not None:
            took = datetime.fromisoformat(entry["at"]) - datetime.fromisoformat(entry["ended"]["started_at"])
            assert took.total_seconds() >= 0
            assert entry["event"] == "attempt_lost" or entry["ended"]["duration_seconds"] >= 0
    places = [tuple(map(int, entry["id"].split("."))) for entry in events]
    assert places == sorted(set(places)), "ids are unique and grow"
    for earlier, later in pairwise(events):
        assert earlier["at"] <= later["at"]
        assert earlier["run"] <= later["run"]


async def test_the_history_of_a_completed_job_has_each_hand_over_with_its_attempt(http: Api) -> None:
    job_id = await http.submit("scripted")
    job = await http.wait_until(job_id, "completed")
    events = await history(http, job_id)
    check(events)
    assert summary(events) == [
        ("0.0", "submitted", "preparing"),
        ("1.0", "handed_over", "grinding"),
        ("2.0", "handed_over", "closing"),
        ("3.0", "completed", "closing"),
    ]
    assert attempts(events) == [None, ("preparing", 1), ("grinding", 1), ("closing", 1)]
    assert {entry["run"] for entry in events} == {1}
    assert {entry["error"] for entry in events} == {None}
    assert events[0]["at"] == job["created_at"]
    assert events[-1]["at"] == job["updated_at"]


async def test_the_history_has_every_failed_attempt_with_its_error_and_the_delay_after_it(
    http: Api, live: Live
) -> None:
    live.script.write("grinding", "raise")
    job_id = await http.submit("scripted")
    job = await http.wait_until(job_id, "failed")
    events = await history(http, job_id)
    check(events)
    assert summary(events) == [
        ("0.0", "submitted", "preparing"),
        ("1.0", "handed_over", "grinding"),
        ("1.1", "attempt_failed", "grinding"),
        ("1.2", "attempt_failed", "grinding"),
        ("2.0", "failed", "grinding"),
    ]
    assert attempts(events) == [None, ("preparing", 1), ("grinding", 1), ("grinding", 2), ("grinding", 3)]
    assert [entry["retry_in_seconds"] for entry in events] == [None, None, 0.1, 0.1, None]
    for number, entry in enumerate(events[2:], 1):
        assert f"the script says so, attempt {number}" in entry["error"]
        assert entry["ended"]["duration_seconds"] is not None
    assert events[-1]["error"] == job["error"]


async def test_the_history_has_both_attempts_of_a_stage_that_succeeds_on_its_second(http: Api, live: Live) -> None:
    live.script.write("preparing", "raise", "ok")
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "completed")
    events = await history(http, job_id)
    check(events)
    assert summary(events)[:3] == [
        ("0.0", "submitted", "preparing"),
        ("0.1", "attempt_failed", "preparing"),
        ("1.0", "handed_over", "grinding"),
    ]
    assert attempts(events)[:3] == [None, ("preparing", 1), ("preparing", 2)]


async def test_a_permanent_error_is_one_attempt(http: Api, live: Live) -> None:
    live.script.write("preparing", "permanent")
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "failed")
    events = await history(http, job_id)
    check(events)
    assert summary(events) == [("0.0", "submitted", "preparing"), ("1.0", "failed", "preparing")]
    assert attempts(events) == [None, ("preparing", 1)]


async def test_a_job_that_was_just_accepted_has_its_history_at_once(http: Api) -> None:
    for _ in range(20):
        job_id = await http.submit()
        assert summary(await history(http, job_id)) == [("0.0", "submitted", "extracting")]


async def test_an_attempt_in_the_history_of_a_running_job_is_there_before_the_job_ends(http: Api, live: Live) -> None:
    live.script.write("preparing", "raise", "gate")
    job_id = await http.submit("scripted")
    await eventually(lambda: len(live.script.runs("preparing", job_id)) == 2)
    assert summary(await history(http, job_id))[1:] == [("0.1", "attempt_failed", "preparing")]
    live.script.open_gate()
    await http.wait_until(job_id, "completed")


@asynccontextmanager
async def running(http: Api, live: Live) -> AsyncIterator[tuple[str, Callable[..., Awaitable[None]]]]:
    """A job whose first attempt runs until the end of the context, and a function that publishes an end of it."""
    live.script.write("preparing", "gate")
    job_id = await http.submit("scripted")
    await eventually(lambda: live.script.runs("preparing", job_id))
    created = datetime.fromisoformat((await http.get(job_id))["created_at"])

    async with Observer(live.nats.url) as observer:

        async def publish(**fields: Any) -> None:
            message = AttemptFailed(
                job_id=job_id,
                type="scripted",
                step=0,
                stage="preparing",
                attempt=1,
                started_at=created,
                at=messages.now(),
                created_at=created,
                delay_seconds=0,
                **fields,
            )
            subject = subjects.attempt_subject("preparing", job_id)
            await observer.nc.request(subject, messages.encode(message), timeout=10)

        yield job_id, publish
    live.script.open_gate()
    await http.wait_until(job_id, "completed")


async def test_a_lost_attempt_has_a_start_and_no_duration(http: Api, live: Live) -> None:
    async with running(http, live) as (job_id, publish):
        following = asyncio.create_task(entries(http, job_id, most=2))
        await publish(error="worker lost: it ended without a result", lost=True)
        events = await history(http, job_id)
        check(events)
        lost = events[1]
        assert (lost["id"], lost["event"], lost["stage"]) == ("0.1", "attempt_lost", "preparing")
        assert (lost["error"], lost["retry_in_seconds"]) == ("worker lost: it ended without a result", 0.0)
        assert lost["ended"]["duration_seconds"] is None
        assert lost["ended"]["started_at"] is not None
        assert (await http.get(job_id))["status"] == "processing"
        assert [sent.data for sent in await following] == events
    assert (await history(http, job_id))[1] == lost, "recorded as it was in the stream"


TRACEBACK = "Traceback (most recent call last):\n  “é”\nKeyError: 'frames'\n\nThe above exception …\r\n\ttwo"


async def test_a_traceback_is_returned_as_it_was_published(http: Api, live: Live) -> None:
    async with running(http, live) as (job_id, publish):
        await publish(error="KeyError: 'frames'", traceback=TRACEBACK)
        assert (await history(http, job_id))[1]["traceback"] == TRACEBACK
        (sent,) = (sent for sent in await entries(http, job_id, most=2) if sent.event == "attempt_failed")
        assert sent.data["traceback"] == TRACEBACK
    events = await history(http, job_id)
    assert [entry["traceback"] for entry in events] == [None, TRACEBACK, None, None, None]


@pytest.mark.parametrize("first", ["attempt_lost", "attempt_failed"])
async def test_of_two_results_of_one_attempt_the_first_counts(http: Api, live: Live, first: str) -> None:
    async with running(http, live) as (job_id, publish):
        following = asyncio.create_task(entries(http, job_id, most=2))
        await publish(error="one", lost=first == "attempt_lost")
        await publish(error="two", lost=first != "attempt_lost")
        for events in ([sent.data for sent in await following], await history(http, job_id)):
            assert [(entry["event"], entry["error"]) for entry in events[1:]] == [(first, "one")]
    events = await history(http, job_id)
    assert [entry["error"] for entry in events if entry["id"] == "0.1"] == ["one"]


@pytest.mark.parametrize("job_id", ["00000000-0000-4000-8000-000000000000", "x", "%00", "*", "a.b"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_the_history_of_an_unknown_job_is_404(http: Api, job_id: str, accept: str) -> None:
    response = await http.http.get(f"/jobs/{job_id}/events", headers={"accept": accept})
    assert response.status_code == 404
    assert response.json() == {"detail": "Job not found"}
    assert response.headers["content-type"].startswith("application/json")
