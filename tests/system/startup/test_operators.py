"""What the stock NATS tools show to operators."""

import asyncio
from typing import Any

import msgspec

from tests.support.api import Api
from tests.support.servers import NatsServer
from tests.support.services import MOCK_STAGES, System
from tests.support.waiting import eventually
from tests.support.watching import Observer

NAMES = {"heimdex-gateway", "heimdex-status-store", *(f"heimdex-{stage}" for stage in MOCK_STAGES)}


async def ask_all(seen: Observer, subject: str, number: int) -> list[dict[str, Any]]:
    """Send one request as `nats micro` does, which every instance answers."""
    inbox = seen.nc.new_inbox()
    answers: list[dict[str, Any]] = []
    enough = asyncio.Event()

    async def keep(msg: Any) -> None:
        answers.append(msgspec.json.decode(msg.data))
        if len(answers) >= number:
            enough.set()

    await seen.nc.subscribe(inbox, cb=keep)
    await seen.nc.publish(subject, b"", reply=inbox)
    await asyncio.wait_for(enough.wait(), 20)
    return answers


async def test_every_process_is_a_nats_micro_service_that_counts_its_work(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    system.start("analyzing")
    await system.ready()
    for _ in range(5):
        await api.wait_until(await api.submit(), "completed")
    async with Observer(nats.url, "nothing") as seen:
        for call in ("PING", "INFO", "STATS"):
            answers = await ask_all(seen, f"$SRV.{call}", 6)
            assert {answer["name"] for answer in answers} == NAMES
            assert len({answer["id"] for answer in answers}) == 6
            assert {answer["version"] for answer in answers} == {"0.1.0"}
        assert len(await ask_all(seen, "$SRV.PING.heimdex-analyzing", 2)) == 2

        async def work_of(name: str) -> int:
            answers = await ask_all(seen, f"$SRV.STATS.{name}", 2 if name == "heimdex-analyzing" else 1)
            return sum(endpoint["num_requests"] for answer in answers for endpoint in answer["endpoints"])

        async def all_counted(stage: str) -> bool:
            # A hand-over is published before it is counted.
            return await work_of(f"heimdex-{stage}") == 5

        for stage in MOCK_STAGES:
            await eventually(lambda stage=stage: all_counted(stage))  # type: ignore[misc]
        assert await work_of("heimdex-gateway") >= 10

        async def all_recorded() -> bool:
            return await work_of("heimdex-status-store") >= 20

        await eventually(all_recorded)


async def test_a_stages_durable_shows_its_queue(system: System, api: Api, nats: NatsServer) -> None:
    system.start_all(without=("analyzing",))
    await system.ready()
    job_ids = [await api.submit() for _ in range(7)]
    async with Observer(nats.url, "nothing") as seen:

        async def waiting() -> int:
            return int((await seen.api("CONSUMER.INFO.HEIMDEX_JOBS.analyzing")).get("num_pending", -1))

        async def all_wait() -> bool:
            return await waiting() == 7

        await eventually(all_wait)
        system.start("analyzing")
        for job_id in job_ids:
            await api.wait_until(job_id, "completed")
        assert await waiting() == 0
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")


async def test_one_subscription_shows_all_messages_of_a_job(system: System, api: Api, nats: NatsServer) -> None:
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.3"
    system.start_all()
    await system.ready()
    async with Observer(nats.url, "heimdex.*.*.*") as seen:
        job_id = await api.submit()
        await api.submit()
        await api.wait_until(job_id, "completed")
        channels = {msg.subject.split(".")[1] for msg in seen.messages("heimdex", job_id)}
        assert channels == {"jobs", "progress"}
        progress = [tick["progress"] for tick in seen.payloads("heimdex.progress", job_id)]
        assert progress == sorted(progress)
        assert len(set(progress)) > 1
        assert all(msg.headers["traceparent"] for msg in seen.messages("heimdex", job_id))
