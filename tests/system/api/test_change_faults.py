"""Cancel and retry while a worker is missing, busy, frozen or late, or the status store is down."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel, interrupted, retry
from tests.system.api.sse import history

FORBIDDEN = "$JS.API.STREAM.MSG.DELETE.>"


async def test_a_queued_job_that_is_canceled_never_starts(scripted: System, api: Api, nats: NatsServer) -> None:
    scripted.start_all(stages=STAGES, without=("preparing",))
    await scripted.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit("scripted")
        job = await cancel(api, job_id)
        assert (job["status"], job["stage"], job["progress"]) == ("canceled", None, 0)
        assert (job["result"], job["error"]) == (None, None)
        assert job == await api.get(job_id)
        assert seen.subjects("heimdex.jobs", job_id) == ["preparing", "canceled"]
        gone = await seen.api(f"STREAM.MSG.GET.{JOBS}", {"last_by_subj": f"heimdex.jobs.preparing.{job_id}"})
        assert gone["error"]["code"] == 404, "its work is taken out of the queue"
        another = await api.submit("scripted")
        scripted.start("preparing")
        await api.wait_until(another, "completed")
        assert seen.subjects("heimdex.progress", job_id) == []
        await eventually(seen.empty)
    events = await history(api, job_id)
    assert [(entry["event"], entry["ended"]) for entry in events] == [("submitted", None), ("canceled", None)]


async def test_a_running_job_is_interrupted_on_whichever_replica_it_runs(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.env["HEIMDEX_STAGE_CONCURRENCY"] = "1"
    script.write("preparing", "hang")
    scripted.start_all(stages=(*STAGES, "preparing"))
    await scripted.ready()
    jobs = [await api.submit("scripted") for _ in range(2)]
    await eventually(lambda: len(script.runs("preparing")) == 2)
    assert len({pid for *_, pid in script.runs("preparing")}) == 2, "each replica has one"
    for job_id in jobs:
        await api.wait_until(job_id, "processing")
        job = await cancel(api, job_id)
        assert (job["status"], job["stage"]) == ("canceled", "preparing")
        await eventually(lambda job_id=job_id: interrupted(scripted, "preparing", job_id))  # type: ignore[misc]
        submitted, canceled = await history(api, job_id)
        assert (submitted["event"], canceled["event"]) == ("submitted", "canceled")
        ended = canceled["ended"]
        assert (ended["stage"], ended["attempt"]) == ("preparing", 1)
        assert submitted["at"] <= ended["started_at"] <= canceled["at"]
        assert ended["duration_seconds"] > 0
    assert len(script.runs()) == 2


async def test_a_blocking_stage_is_interrupted_at_its_next_report_and_its_thread_ends(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.env["HEIMDEX_STAGE_CONCURRENCY"] = "1"
    script.write("grinding", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    first = await api.submit("scripted")
    await eventually(lambda: script.runs("grinding", first))
    second = await api.submit("scripted")
    await cancel(api, first)
    # The worker has one thread: the second job gets it only when the first one's function has returned.
    await eventually(lambda: script.runs("grinding", second))
    assert (await api.get(first))["status"] == "canceled"
    script.open_gate()
    await api.wait_until(second, "completed")


async def test_a_job_stays_canceled_although_its_worker_finishes_later(
    scripted: System, api: Api, script: Script, nats: NatsServer
) -> None:
    script.write("preparing", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    async with Observer(nats.url, "heimdex-stored.>") as stored:
        job_id = await api.submit("scripted")
        scripted.allow("superseded", job_id=job_id)
        await eventually(lambda: script.runs("preparing", job_id))
        scripted["preparing"].freeze()
        script.open_gate()
        await cancel(api, job_id)
        scripted["preparing"].thaw()
        next_one = await api.submit("scripted")
        await api.wait_until(next_one, "completed")
        await eventually(lambda: interrupted(scripted, "preparing", job_id) or _refused(scripted, job_id))
        assert stored.subjects("heimdex-stored.jobs", job_id) == ["preparing", "canceled"]
        await eventually(lambda: _empty(nats))
    assert (await api.get(job_id))["status"] == "canceled"
    assert [entry["event"] for entry in await history(api, job_id)] == ["submitted", "canceled"]


async def test_a_late_hand_over_is_refused_although_the_canceling_gateway_was_killed(
    scripted: System, api: Api, script: Script, nats: NatsServer
) -> None:
    script.write("preparing", "gate")
    scripted.start_all(stages=STAGES, without=("gateway",))
    scripted.start("gateway", launcher=LAUNCHERS / "gateway_removes_nothing.py")
    await scripted.ready()
    async with Observer(nats.url, "heimdex-stored.>") as stored:
        job_id = await api.submit("scripted")
        scripted.allow("superseded", job_id=job_id)
        await eventually(lambda: script.runs("preparing", job_id))
        worker = scripted["preparing"]
        worker.freeze()
        script.open_gate()
        job = await cancel(api, job_id)
        # The cancel is recorded and leaves the stream; what the worker holds must not be the job's last message again.
        await eventually(lambda: _empty(nats), what="neither is left")
        # It wakes without a word of the cancel, as if it had been cut off.
        worker.thaw()
        await eventually(lambda: interrupted(scripted, "preparing", job_id) or _refused(scripted, job_id))
        assert stored.subjects("heimdex-stored.jobs", job_id) == ["preparing", "canceled"]
        assert await api.get(job_id) == job


@pytest.mark.parametrize("recorded_first", [True, False])
async def test_a_canceled_scheduled_job_never_starts_although_its_schedule_fires(
    scripted: System, api: Api, nats: NatsServer, script: Script, recorded_first: bool
) -> None:
    scripted.start_all(stages=STAGES, without=("preparing", "gateway"))
    # As if it had been killed before it could remove the schedule.
    scripted.start("gateway", launcher=LAUNCHERS / "gateway_removes_nothing.py")
    await scripted.ready()
    store = scripted["status-store"]
    async with Observer(nats.url, "heimdex-stored.>") as stored:
        job_id = await api.submit("scripted", delay_seconds=1.5)
        scripted.allow("dropped", job_id=job_id)
        await api.wait_until_listed([job_id])
        store.freeze()
        await cancel(api, job_id, status=202)
        await eventually(lambda: stored.subjects("heimdex-stored.jobs", job_id) == ["later", "canceled", "preparing"])
        if recorded_first:
            store.thaw()
            await eventually(lambda: _empty(nats), what="what was fired is taken away with the cancel")
        # One that has not heard of the cancel.
        scripted.start("preparing")
        await scripted.ready()
        if not recorded_first:
            await scripted["preparing"].wait_log("delivery_dropped", job_id=job_id)
            store.thaw()
        await api.wait_until(await api.submit("scripted"), "completed")
        await eventually(lambda: _empty(nats))
        assert stored.subjects("heimdex-stored.jobs", job_id) == ["later", "canceled", "preparing"]
    assert script.runs(job_id=job_id) == []
    assert (await api.get(job_id))["status"] == "canceled"


async def test_a_cancel_that_the_broker_refused_interrupts_nothing(
    scripted: System, api: Api, nats: NatsServer, script: Script
) -> None:
    script.write("preparing", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit("scripted")
        await eventually(lambda: script.runs("preparing", job_id))
        (first,) = seen.payloads("heimdex.jobs", job_id)
        canceled = {name: first[name] for name in ("job_id", "type", "created_at", "at")}
        headers = {
            "Nats-Expected-Last-Subject-Sequence": "999999",
            "Nats-Expected-Last-Subject-Sequence-Subject": f"heimdex.jobs.*.{job_id}",
        }
        body = json.dumps({**canceled, "event": "canceled", "step": first["step"] + 1}).encode()
        answer = await seen.nc.request(f"heimdex.jobs.canceled.{job_id}", body, headers=headers)
        assert b"wrong last sequence" in answer.data
        another = await api.submit("scripted")
        await eventually(lambda: script.runs("preparing", another), what="the worker has heard all of it")
        script.open_gate()
        await api.wait_until(job_id, "completed")
    assert not interrupted(scripted, "preparing", job_id)


def _refused(system: System, job_id: str) -> bool:
    return bool(system["preparing"].logged("delivery_superseded", job_id=job_id))


async def _empty(nats: NatsServer) -> bool:
    async with Observer(nats.url, "heimdex-nothing") as observer:
        return await observer.empty()


async def test_with_the_status_store_down_a_cancel_is_202_and_no_later_response_is_older(
    scripted: System, api: Api, script: Script
) -> None:
    script.write("preparing", "hang")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = await api.submit("scripted")
    await api.wait_until(job_id, "processing", "pending")
    await eventually(lambda: script.runs("preparing", job_id))
    scripted["status-store"].freeze()
    job = await cancel(api, job_id, status=202)
    assert job["status"] == "canceled"
    seen = [job, *[await api.get(job_id) for _ in range(5)]]
    assert {one["status"] for one in seen} == {"canceled"}
    for earlier, later in pairwise(seen):
        assert str(earlier["updated_at"]) <= str(later["updated_at"])
    await eventually(lambda: interrupted(scripted, "preparing", job_id))
    scripted["status-store"].thaw()
    assert (await api.get(job_id))["status"] == "canceled"
    await cancel(api, job_id, status=409)


@dataclass
class Forbidding:
    """A nats-server that does not answer the deletion of a message until `allow`."""

    url: str
    config: Path
    child: ChildProcess

    def allow(self) -> None:
        self.config.write_text(self.config.read_text().replace(FORBIDDEN, "nothing"))
        os.kill(self.child.pid or 0, signal.SIGHUP)


@pytest.fixture
def forbidding(scratch: Path) -> Iterator[Forbidding]:
    port = free_port()
    config = scratch / "forbidding.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {json.dumps(str(scratch / 'forbidding'))} }}\n"
        "no_auth_user: any\n"
        'authorization { users: [{ user: any, password: any, permissions: { publish: { deny: ["%s"] } } }] }\n'
        % FORBIDDEN
    )
    child = ChildProcess(
        [Path(sys.executable).with_name("nats-server"), "-c", config],
        log_path=scratch / "forbidding.log",
        stop_seconds=15,
        rank=1,
    )
    child.start()
    yield Forbidding(f"nats://127.0.0.1:{port}", config, child)
    child.kill()


async def test_a_cancel_is_answered_in_time_although_the_queued_message_cannot_be_removed_yet(
    new_system: NewSystem, forbidding: Forbidding, database_url: str, script: Script
) -> None:
    system = new_system(forbidding.url, database_url, **script.env)
    system.start_all(stages=STAGES, without=("preparing", "status-store"))
    store = system.start("status-store")
    await system.ready()
    async with Api(system.url) as api, Observer(forbidding.url) as seen:
        job_id = await api.submit("scripted")
        work = {"last_by_subj": f"heimdex.jobs.preparing.{job_id}"}
        store.freeze()
        job = await cancel(api, job_id, status=202)
        assert job["status"] == (await api.get(job_id))["status"] == "canceled"
        assert "message" in await seen.api(f"STREAM.MSG.GET.{JOBS}", work), "it is there"
        forbidding.allow()

        async def gone() -> bool:
            return "error" in await seen.api(f"STREAM.MSG.GET.{JOBS}", work)

        await eventually(gone, what="it is taken out when that can be")
        store.thaw()


async def test_one_of_two_retries_runs_the_job_even_if_the_other_arrives_after_that_run(
    scripted: System, api: Api, nats: NatsServer, script: Script, scratch: Path
) -> None:
    go_on, port = scratch / "go_on", free_port()
    script.write("preparing", "permanent")
    scripted.start_all(stages=STAGES)
    scripted.start("gateway", {"TEST_GO_ON": str(go_on)}, LAUNCHERS / "gateway_that_waits_before_a_change.py", port)
    await scripted.ready()
    async with Api(f"http://127.0.0.1:{port}") as late:
        job_id = await api.submit("scripted")
        await api.wait_until(job_id, "failed")
        await api.wait_until_listed([job_id], status="failed")
        script.write("preparing", "ok")
        retrying = asyncio.create_task(retry(late, job_id, "?from=start", status=409))
        await eventually(go_on.with_suffix(".waiting").exists)
        await retry(api, job_id)
        await api.wait_until(job_id, "completed")
        await eventually(lambda: _empty(nats))
        go_on.touch()
        assert "completed" in str((await retrying)["detail"])
    assert len(script.runs("preparing", job_id)) == 2
    assert [entry["event"] for entry in await history(api, job_id)][-1] == "completed"


async def test_with_the_status_store_down_a_retry_is_202_and_no_later_response_is_older(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.start_all(stages=STAGES, without=("preparing",))
    await scripted.ready()
    job_id = await api.submit("scripted")
    assert (await api.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    scripted["status-store"].freeze()
    job = await retry(api, job_id, status=202)
    assert job["status"] == "pending"
    for _ in range(3):
        assert (await api.get(job_id))["status"] == "pending"
    scripted["status-store"].thaw()
    scripted.start("preparing")
    await api.wait_until(job_id, "completed")
