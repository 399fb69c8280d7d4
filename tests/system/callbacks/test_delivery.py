"""A terminal event is called back to the job's callback_url: signed, once per run, and shown in its history."""

import threading
import time

from tests.support.api import Api
from tests.support.receiver import Receiver
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.asking import cancel, retry
from tests.system.api.sse import entries, history
from tests.system.callbacks.histories import callbacks_of, wait_for_callback

SOON = LAUNCHERS / "gateway_that_calls_soon.py"
CALLBACKS = "HEIMDEX_CALLBACKS"


async def start(system: System) -> None:
    """All services, with a gateway whose callback back-off is short."""
    system.start_all(without=("gateway",))
    system.start("gateway", launcher=SOON)
    await system.ready()


async def test_each_terminal_state_is_called_back_once_with_the_job_object_of_get(
    calling: System, api: Api, nats: NatsServer, receiver: Receiver
) -> None:
    calling.start_all(without=("indexing",))
    await calling.ready()
    async with Observer(nats.url) as seen:
        canceled = await api.submit(callback_url=receiver.url)
        await api.wait_until(canceled, "processing")
        await cancel(api, canceled)
        calling.start("indexing")
        completed = await api.submit(callback_url=receiver.url)
        failed = await api.submit(callback_url=receiver.url, fail_at_stage="analyzing")
        plain = await api.submit()
        for job_id in (canceled, completed, failed):
            (entry,) = await wait_for_callback(api, job_id)
            assert entry["id"].endswith(".1")
            assert (entry["error"], entry["retry_in_seconds"], entry["ended"]) == (None, None, None)
        await api.wait_until(plain, "completed")
        await eventually(lambda: seen.empty(CALLBACKS))
        for job_id in (canceled, completed, failed):
            assert [call.job for call in receiver.of(job_id)] == [await api.get(job_id)]
            assert seen.subjects("heimdex.callbacks", job_id) == ["due", "delivered"]
        await eventually(seen.empty)
    assert len(receiver.calls) == 3
    call = receiver.calls[0]
    assert call.path == "/hooks?for=tests"
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_failed_attempts_are_repeated_with_the_same_id_and_are_in_the_history(
    calling: System, api: Api, nats: NatsServer, receiver: Receiver
) -> None:
    receiver.answers = [500, 503, 200]
    await start(calling)
    async with Observer(nats.url) as seen:
        job_id = await api.submit(callback_url=receiver.url)
        events = await wait_for_callback(api, job_id)
        assert seen.subjects("heimdex.callbacks", job_id) == ["due", "failed", "failed", "delivered"]
        await eventually(lambda: seen.empty(CALLBACKS))
    assert [entry["event"] for entry in events] == ["callback_failed", "callback_failed", "callback_delivered"]
    assert [entry["error"] for entry in events] == ["The receiver answered 500.", "The receiver answered 503.", None]
    assert [entry["id"] for entry in events] == ["3.1", "3.2", "3.3"]
    for entry in events[:2]:
        assert 0.08 < entry["retry_in_seconds"] < 0.12
    assert {call.id for call in receiver.calls} == {f"{job_id}-3"}
    assert len({call.body for call in receiver.calls}) == 1
    assert await api.get(job_id) == receiver.calls[-1].job


async def test_a_callback_to_a_receiver_that_was_down_is_delivered_when_it_is_up(calling: System, api: Api) -> None:
    await start(calling)
    with Receiver() as away:
        pass
    job_id = await api.submit(callback_url=away.url)
    await wait_for_callback(api, job_id, "callback_failed")
    with away:
        events = await wait_for_callback(api, job_id)
        assert [call.job["id"] for call in away.calls] == [job_id]
    assert {entry["event"] for entry in events[:-1]} == {"callback_failed"}
    assert "cannot be reached" in events[0]["error"]


async def test_a_callback_is_given_up_after_the_last_attempt_and_at_once_after_a_410(
    calling: System, api: Api, nats: NatsServer, receiver: Receiver
) -> None:
    await start(calling)
    receiver.answers = [500]
    job_id = await api.submit(callback_url=receiver.url)
    events = await wait_for_callback(api, job_id, "callback_given_up")
    assert [entry["id"] for entry in events] == [f"3.{number}" for number in range(1, 9)]
    assert (events[-1]["error"], events[-1]["retry_in_seconds"]) == ("The receiver answered 500.", None)
    assert len(receiver.calls) == 8
    receiver.answers = [410]
    job_id = await api.submit(callback_url=receiver.url)
    (entry,) = await wait_for_callback(api, job_id, "callback_given_up")
    assert "410" in entry["error"]
    async with Observer(nats.url) as seen:
        await eventually(lambda: seen.empty(CALLBACKS))


async def test_each_run_of_a_job_has_a_callback_with_its_terminal_state(
    calling: System, api: Api, receiver: Receiver
) -> None:
    # The callback of the first run is still pending when the second run reaches another terminal state.
    receiver.answers = [500, 500, 500, 500, 204]
    await start(calling)
    job_id = await api.submit(callback_url=receiver.url, fail_at_stage="indexing")
    first = await api.wait_until(job_id, "failed")
    await retry(api, job_id)
    await wait_for_callback(api, job_id, run=2)
    await wait_for_callback(api, job_id, run=1)
    jobs = {call.id: call.job for call in receiver.of(job_id)}
    assert len(jobs) == 2
    assert jobs.pop(f"{job_id}-3") == first
    assert list(jobs.values()) == [await api.get(job_id)]


async def test_the_jobs_of_a_batch_are_each_called_back_at_their_own_url(
    calling: System, api: Api, receiver: Receiver
) -> None:
    calling.start_all()
    await calling.ready()
    jobs = [{"type": "mock_process", "callback_url": f"{receiver.url}&number={number}"} for number in range(100)]
    response = await api.http.post("/jobs/batch", json={"jobs": [*jobs, {"type": "mock_process"}]})
    assert response.status_code == 202, response.text
    *called, plain = response.json()["job_ids"]
    await eventually(lambda: len(receiver.calls) == 100, what=lambda: f"100 calls, not {len(receiver.calls)}")
    assert {call.path: call.job["id"] for call in receiver.calls} == {
        f"/hooks?for=tests&number={number}": job_id for number, job_id in enumerate(called)
    }
    await api.wait_until(plain, "completed")
    assert await callbacks_of(api, plain) == []


async def test_the_live_stream_ends_after_the_terminal_event_whatever_callbacks_follow(
    calling: System, api: Api, receiver: Receiver
) -> None:
    calling.start_all()
    await calling.ready()
    job_id = await api.submit(callback_url=receiver.url)
    await wait_for_callback(api, job_id)
    whole = await history(api, job_id)
    assert [entry["id"] for entry in whole] == ["0.0", "1.0", "2.0", "3.0", "3.1"]
    assert [sent.data for sent in await entries(api, job_id)] == whole[:-1]
    assert [sent.id for sent in await entries(api, job_id, after="2.0")] == ["3.0"]
    assert await entries(api, job_id, after="3.1") == []


async def test_a_receiver_that_does_not_respond_delays_no_other(calling: System, api: Api, receiver: Receiver) -> None:
    calling.start_all()
    await calling.ready()
    over = threading.Event()
    with Receiver(answers=[lambda _: over.wait(60) and 204]) as silent:
        jobs = [{"type": "mock_process", "callback_url": silent.url}] * 600
        try:
            assert (await api.http.post("/jobs/batch", json={"jobs": jobs})).status_code == 202
            await eventually(lambda: len(silent.calls) == 16, what="as many calls as one receiver gets at once")
            began = time.monotonic()
            job_id = await api.submit(callback_url=receiver.url)
            await eventually(lambda: receiver.of(job_id), what="the other receiver is called")
            print(f"\ncalled back while 600 wait, {time.monotonic() - began:.2f} s after its POST")
            assert len(silent.calls) == 16
        finally:
            over.set()
        await eventually(lambda: len(silent.calls) == 600, 90, what=lambda: f"all are called, not {len(silent.calls)}")


async def test_a_job_with_a_forbidden_callback_url_is_refused(calling: System, api: Api) -> None:
    calling.start("gateway", {"HEIMDEX_CALLBACK_ALLOW": None})
    calling.start("status-store")
    await calling.ready()
    for url in (
        "http://127.0.0.1:9/",
        "http://localhost/",
        "http://localhost.:80/",
        "file:///etc/passwd",
        "http://[::1]/",
    ):
        response = await api.http.post("/jobs", json={"type": "mock_process", "callback_url": url})
        assert response.status_code == 422, url
        assert response.json()["field"] == "callback_url"
        jobs = [{"type": "mock_process"}, {"type": "mock_process", "callback_url": url}]
        response = await api.http.post("/jobs/batch", json={"jobs": jobs})
        assert response.status_code == 422, url
        assert response.json()["field"] == "jobs[1].callback_url"
    assert (await api.http.get("/jobs")).json()["jobs"] == []


async def test_a_removed_allowance_applies_to_callbacks_that_are_due_already(
    calling: System, api: Api, receiver: Receiver
) -> None:
    calling.start_all(without=("indexing",))
    await calling.ready()
    job_id = await api.submit(callback_url=receiver.url)
    await calling["gateway"].terminate()
    calling.start("gateway", {"HEIMDEX_CALLBACK_ALLOW": None}, launcher=SOON)
    calling.start("indexing")
    await calling.ready()
    events = await wait_for_callback(api, job_id, "callback_failed")
    assert events[0]["error"] == "The callback_url must lead to a public address, not to 127.0.0.1."
    assert not receiver.calls
    await calling["gateway"].terminate()
    calling.start("gateway", launcher=SOON)
    await calling.ready()
    await wait_for_callback(api, job_id)
    assert len(receiver.calls) == 1


async def test_a_due_callback_waits_for_a_gateway_with_the_secret(
    calling: System, api: Api, receiver: Receiver
) -> None:
    calling.start_all(without=("indexing",))
    await calling.ready()
    job_id = await api.submit(callback_url=receiver.url)
    await calling["gateway"].terminate()
    calling.start("gateway", {"HEIMDEX_CALLBACK_SECRET": None})
    calling.start("indexing")
    await calling.ready()
    await api.wait_until(job_id, "completed")
    response = await api.http.post("/jobs", json={"type": "mock_process", "callback_url": receiver.url})
    assert response.status_code == 422
    assert "not enabled" in response.json()["detail"]
    await calling["gateway"].terminate()
    calling.start("gateway")
    await calling.ready()
    await wait_for_callback(api, job_id)
    assert len(receiver.calls) == 1
