"""The NATS users of deploy/nats.conf: each service can do everything that it must, also after a reconnection."""

import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.pipelines.deployed import RUNS, declared
from tests.support.pipelines.looping import STAGE, Looping
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.receiver import SECRET, Receiver
from tests.support.services import LAUNCHERS, ROOT, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel, retry


@dataclass
class Guarded:
    """A nats-server with the users of deploy/nats.conf; each one's password is its name."""

    port: int
    child: ChildProcess

    def url(self, user: str) -> str:
        return f"nats://{user}:{user}@127.0.0.1:{self.port}"

    def restart(self) -> None:
        self.child.kill()
        self.child.start()


@pytest.fixture
def guarded(scratch: Path) -> Iterator[Guarded]:
    port, config = free_port(), scratch / "nats.conf"
    text = (ROOT / "deploy" / "nats.conf").read_text()
    for written, replacement in (
        ("port: 4222", f'host: "127.0.0.1", port: {port}'),
        ("http: 8222", f'http: "127.0.0.1:{free_port()}"'),
        ("store_dir: /data", f'store_dir: "{scratch / "jetstream"}"'),
    ):
        assert written in text
        text = text.replace(written, replacement)
    text = re.sub(r"\$HEIMDEX_NATS_([A-Z_]+)_PASSWORD", lambda match: match[1].lower().replace("_", "-"), text)
    config.write_text(text)
    server = Path(sys.executable).with_name("nats-server")
    guarded = Guarded(
        port, ChildProcess([server, "-c", config], log_path=scratch / "nats.log", stop_seconds=15, rank=1)
    )
    guarded.child.start()
    yield guarded
    guarded.child.kill()


class Users:
    """Starts each service of a system as its own user."""

    def __init__(self, system: System, guarded: Guarded) -> None:
        self._system = system
        self._guarded = guarded

    def start(self, *names: str, launcher: Path | None = None) -> None:
        for name in names:
            user = name if name in {"gateway", "status-store"} else "stage-worker"
            self._system.start(name, {"HEIMDEX_NATS_URL": self._guarded.url(user)}, launcher)


@pytest.fixture
def system(new_system: NewSystem, guarded: Guarded, own_postgres: Any, script: Script) -> System:
    callbacks = {"HEIMDEX_CALLBACK_SECRET": SECRET, "HEIMDEX_CALLBACK_ALLOW": "127.0.0.0/8"}
    return new_system(guarded.url("operator"), own_postgres.url, **callbacks, **script.env)


@pytest.fixture
def users(system: System, guarded: Guarded) -> Users:
    return Users(system, guarded)


def check_nothing_was_refused(system: System) -> None:
    for service in system.services:
        assert "iolation" not in service.stderr, f"{service} may not do what it must: {service.stderr}"


async def test_the_leases_of_a_worker_whose_event_loop_is_blocked_may_be_renewed(
    system: System, users: Users, guarded: Guarded, scratch: Path
) -> None:
    looping = Looping(scratch / "looping", seconds=5)  # more than two ack waits
    system.env |= looping.env
    users.start("gateway", STAGE, "status-store")
    await system.ready()
    async with Api(system.url) as api, Observer(guarded.url("operator")) as seen:
        await api.wait_until(await api.submit("blocker"), "completed")
        consumer = await seen.api(f"CONSUMER.INFO.{JOBS}.{STAGE}")
    assert consumer["num_redelivered"] == 0
    assert system[STAGE].logged("nats_connected", connection="blocked-loop")
    check_nothing_was_refused(system)


@pytest.mark.allows("unusable")
async def test_every_transition_of_a_job_is_permitted(
    system: System, users: Users, guarded: Guarded, script: Script
) -> None:
    users.start("gateway", *STAGES, "status-store")
    await system.ready()
    async with Api(system.url) as api, Observer(guarded.url("operator")) as seen:
        with Receiver() as receiver:
            await api.wait_until(await api.submit("scripted", callback_url=receiver.url), "completed")
            await eventually(lambda: receiver.calls)
        keyed = {"Idempotency-Key": "one"}
        assert await api.submit("scripted", keyed) == await api.submit("scripted", keyed)
        await api.wait_until(await api.submit("scripted", delay_seconds=1), "completed")
        batch = await api.http.post("/jobs/batch", json={"jobs": [{"type": "scripted"}] * 3})
        for job_id in batch.json()["job_ids"]:
            await api.wait_until(job_id, "completed")
        script.write("grinding", "permanent")
        failed = await api.submit("scripted")
        await api.wait_until(failed, "failed")
        script.write("grinding", "hang")
        await retry(api, failed)
        await eventually(lambda: len(script.runs("grinding", failed)) == 2)
        await cancel(api, failed)
        for subject in ("heimdex.jobs.preparing.x", "heimdex.jobs.nobody.x", "heimdex.attempts.preparing.x"):
            await seen.nc.publish(subject, b"rubbish")
        await eventually(lambda: len({msg.subject for msg in seen.messages("heimdex.unusable", ".x")}) == 3)
        await eventually(seen.empty)
    check_nothing_was_refused(system)


@pytest.mark.allows("refused", "topology")
async def test_a_job_that_no_worker_knows_is_reported_and_failed(
    system: System, users: Users, guarded: Guarded, scratch: Path
) -> None:
    system.env["HEIMDEX_UNKNOWN_AFTER_SECONDS"] = "1"
    users.start("gateway", "status-store")
    older = {**declared({"film": ("preparing",)}), RUNS: str(scratch / "runs")}
    system.start("preparing", {**older, "HEIMDEX_NATS_URL": guarded.url("stage-worker")})
    await system.ready()
    async with Api(system.url) as api, Observer(guarded.url("operator"), "heimdex-nothing") as seen:
        job_id = await api.submit("scripted")
        assert "no worker knows" in (await api.wait_until(job_id, "failed"))["error"]
        await eventually(seen.empty)
    check_nothing_was_refused(system)


@pytest.mark.allows("nats_killed")
async def test_every_delivery_held_at_a_reconnection_may_be_read(
    system: System, users: Users, guarded: Guarded, own_postgres: Any, script: Script
) -> None:
    script.write("grinding", "gate")
    users.start(*STAGES, "status-store")
    users.start("gateway", launcher=LAUNCHERS / "gateway_that_calls_soon.py")
    await system.ready()
    silent = threading.Event()
    with Receiver([500, lambda _: silent.wait(60) and 204, 204]) as receiver:
        async with Api(system.url) as api, Observer(guarded.url("operator")) as seen:
            held = await api.submit("scripted")
            await eventually(lambda: script.runs("grinding", held))
            called = await api.submit("mock_process", callback_url=receiver.url)
            await cancel(api, called)
            await eventually(lambda: receiver.calls)
            own_postgres.stop()
            await eventually(lambda: len(receiver.calls) == 2, what="the gateway is in the middle of a try")

            async def is_held() -> bool:
                info = await seen.api("CONSUMER.INFO.HEIMDEX_CALLBACKS.status-store")
                return int(info["num_ack_pending"]) >= 1

            await eventually(is_held, what="the status store holds what was told of the first try")
            guarded.restart()
            own_postgres.start()
            silent.set()
            script.open_gate()
            await api.wait_until_listed([held], status="completed")
            for stream in (JOBS, "HEIMDEX_CALLBACKS"):
                await eventually(lambda stream=stream: seen.empty(stream), what=f"{stream} is empty")  # type: ignore[misc]
            assert (await api.http.get("/readyz")).status_code == 200
    check_nothing_was_refused(system)


async def test_each_user_may_query_which_database_the_status_stores_belong_to(
    system: System, users: Users, guarded: Guarded
) -> None:
    async with Observer(guarded.url("operator"), "$SRV.INFO.>") as asked:
        for name in ("status-store", "gateway", STAGES[0]):
            asked.seen.clear()
            users.start(name)
            await system[name].wait_log("ready")
            await eventually(lambda: asked.seen, what=f"{name} asks")
    check_nothing_was_refused(system)


async def test_the_status_store_may_find_out_that_a_stage_has_no_worker(
    system: System, users: Users, guarded: Guarded
) -> None:
    users.start("gateway")
    users.start("status-store", launcher=LAUNCHERS / "store_that_looks_at_stages_soon.py")
    await system.ready()
    async with Api(system.url) as api:
        await api.submit("scripted")
        await system["status-store"].wait_log("stage_without_worker", stage=STAGES[0])
        users.start(STAGES[0])
        await system["status-store"].wait_log("stage_without_worker_over", stage=STAGES[0])
    check_nothing_was_refused(system)
