"""GET /jobs/{id}/events as text/event-stream: the history, then each change, until the terminal event."""

import asyncio
from contextlib import aclosing

import pytest

from tests.support.api import Api
from tests.support.waiting import eventually
from tests.system.api.conftest import Live
from tests.system.api.sse import Sent, entries, history, listen


async def finished(api: Api, live: Live) -> str:
    """Return a finished job with two attempts and two runs."""
    live.script.write("preparing", "raise", "ok")
    live.script.write("grinding", "permanent")
    job_id = await api.submit("scripted")
    await api.wait_until(job_id, "failed")
    live.script.write("grinding", "raise", "ok")
    assert (await api.http.post(f"/jobs/{job_id}/retry")).status_code == 200
    await api.wait_until(job_id, "completed")
    return job_id


async def test_a_stream_sends_the_history_then_each_change_and_ends_after_the_terminal_event(
    http: Api, live: Live
) -> None:
    live.script.write("grinding", "gate")
    job_id = await http.submit("scripted")
    await eventually(lambda: live.script.runs("grinding", job_id))
    received: list[Sent] = []
    async for sent in listen(http, job_id):
        if sent.id is None:
            continue
        received.append(sent)
        if sent.data["stage"] == "grinding":
            # The events from before the connection have been received; what follows is live.
            assert [one.event for one in received] == ["submitted", "handed_over"]
            live.script.open_gate()
    assert [one.event for one in received] == ["submitted", "handed_over", "handed_over", "completed"]
    assert [one.data for one in received] == await history(http, job_id), "the same entries as in the history"
    assert [one.event for one in received] == [one.data["event"] for one in received]


async def test_a_stream_has_failed_attempts_and_all_runs_and_ends_after_the_last_terminal_event(
    http: Api, live: Live
) -> None:
    job_id = await finished(http, live)
    received = await entries(http, job_id)
    assert [(sent.data["run"], sent.event) for sent in received] == [
        (1, "submitted"),
        (1, "attempt_failed"),
        (1, "handed_over"),
        (1, "failed"),
        (2, "retried"),
        (2, "attempt_failed"),
        (2, "handed_over"),
        (2, "completed"),
    ]
    places = [sent.place for sent in received]
    assert places == sorted(set(places))


async def test_a_stream_of_a_retried_job_continues_with_the_new_run(http: Api, live: Live) -> None:
    live.script.write("preparing", "permanent")
    job_id = await http.submit("scripted")
    first = await entries(http, job_id)
    assert [sent.event for sent in first] == ["submitted", "failed"]
    live.script.write("preparing", "gate")
    assert (await http.http.post(f"/jobs/{job_id}/retry")).status_code == 200
    second: list[Sent] = []
    async for sent in listen(http, job_id, after=first[-1].id):
        if sent.id is not None:
            second.append(sent)
            live.script.open_gate()
    assert [sent.event for sent in second] == ["retried", "handed_over", "handed_over", "completed"]


async def test_a_stream_resumes_after_any_event_without_gap_or_repeat(http: Api, live: Live) -> None:
    job_id = await finished(http, live)
    whole = await entries(http, job_id)
    for index, sent in enumerate(whole, 1):
        assert await entries(http, job_id, after=sent.id) == whole[index:]


async def test_a_caller_who_reconnects_after_every_event_gets_each_event_once(http: Api, live: Live) -> None:
    live.script.write("preparing", "raise", "raise", "ok")
    live.script.write("grinding", "raise", "ok")
    job_id = await http.submit("scripted")
    received: list[Sent] = []
    while not received or received[-1].event != "completed":
        received += await entries(http, job_id, after=received[-1].id if received else None, most=1)
    assert [sent.data for sent in received] == await history(http, job_id)


async def test_a_stream_that_is_cut_at_any_byte_resumes_without_gap_or_repeat(http: Api, live: Live) -> None:
    job_id = await finished(http, live)
    whole = await entries(http, job_id)
    headers = {"accept": "text/event-stream"}
    raw = (await http.http.get(f"/jobs/{job_id}/events", headers=headers)).content
    for cut in range(0, len(raw), 61):
        # As a caller's parser does: an event without its closing empty line was not received.
        blocks = raw[:cut].split(b"\n\n")[:-1]
        ids = [line[4:] for block in blocks for line in block.split(b"\n") if line.startswith(b"id: ")]
        after = ids[-1].decode() if ids else None
        assert await entries(http, job_id, after=after) == whole[len(ids) :]


@pytest.mark.parametrize("last", ["", "x", "1", "1.", ".1", "-1.0", "1.0.0", "9" * 400, "٣.٣", "99999.0"])
async def test_an_id_of_another_job_starts_from_the_beginning(http: Api, live: Live, last: str) -> None:
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "completed")
    response = await http.http.get(
        f"/jobs/{job_id}/events", headers={"accept": "text/event-stream", "last-event-id": last.encode()}
    )
    assert response.status_code == 200
    assert response.text.count("\nid: ") == 4


async def test_progress_events_have_no_id_and_their_progress_never_decreases(http: Api, live: Live) -> None:
    live.script.write("grinding", "gate")
    job_id = await http.submit("scripted")
    ticks: list[Sent] = []
    current = ""
    async for sent in listen(http, job_id):
        if sent.id is not None:
            current = sent.data["stage"]
            continue
        assert sent.event == "progress"
        assert list(sent.data) == ["stage", "attempt", "progress", "at"]
        assert sent.data["stage"] == current
        ticks.append(sent)
        live.script.open_gate()
    assert "grinding" in {tick.data["stage"] for tick in ticks}
    shown = [tick.data["progress"] for tick in ticks]
    assert shown == sorted(shown)


async def test_many_callers_of_a_stream_get_the_same_events(http: Api, live: Live) -> None:
    live.script.write("preparing", "gate")
    job_id = await http.submit("scripted")
    listening = [asyncio.create_task(entries(http, job_id)) for _ in range(20)]
    await eventually(lambda: live.script.runs("preparing", job_id))
    live.script.open_gate()
    received = await asyncio.wait_for(asyncio.gather(*listening), 60)
    assert all(one == received[0] for one in received)
    assert received[0][-1].event == "completed"


async def test_a_stream_has_its_content_type_and_its_reconnection_delay(http: Api, live: Live) -> None:
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "completed")
    response = await http.http.get(f"/jobs/{job_id}/events", headers={"accept": "text/event-stream"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.text.startswith("retry: ")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, application/json;q=0.1", "text/event-stream"),
        ("Text/Event-Stream; charset=utf-8", "text/event-stream"),
        ("application/json, text/event-stream;q=0.5", "application/json"),
        ("text/event-stream;q=0, */*", "application/json"),
        ("text/event-stream;q=0", "application/json"),
        ("text/event-stream; Q=0.000; charset=utf-8", "application/json"),
        ("text/*, text/event-stream;q=0", "application/json"),
        ("text/*;q=0", "application/json"),
        ("text/*;q=0, text/event-stream;q=0.01", "text/event-stream"),
        ("application/json", "application/json"),
        ("application/xml", "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
    ],
)
async def test_the_accept_header_chooses_between_the_stream_and_json(
    http: Api, live: Live, accept: str, kind: str
) -> None:
    job_id = await http.submit("scripted")
    await http.wait_until(job_id, "completed")
    response = await http.http.get(f"/jobs/{job_id}/events", headers={"accept": accept})
    assert response.headers["content-type"].startswith(kind)


async def test_a_canceled_job_ends_its_stream(http: Api) -> None:
    job_id = await http.submit("mock_process")
    received: list[Sent] = []
    async for sent in listen(http, job_id):
        received.append(sent)
        if sent.event == "submitted":
            assert (await http.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert [sent.event for sent in received] == ["submitted", "canceled"]


async def test_callers_who_disconnect_do_not_affect_others(http: Api, live: Live) -> None:
    job_id = await http.submit("mock_process")
    for _ in range(30):
        async with aclosing(listen(http, job_id)) as stream:
            await anext(stream)
    assert (await http.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert [sent.event for sent in await entries(http, job_id)] == ["submitted", "canceled"]
