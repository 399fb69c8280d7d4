"""Fault 9: the server's max_payload is smaller than a message, which is refused with a sentence until it is raised."""

from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.servers import NatsServer, reload_nats
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

#: Less than any message of a job.
FEW_BYTES = 256


async def test_a_message_over_max_payload_is_refused_with_a_sentence_until_the_limit_is_raised(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    # Leases that outlast what a busy machine needs for this.
    system.env["HEIMDEX_ACK_WAIT_SECONDS"] = "30"
    system.start_all(stages=STAGES)
    await system.ready()
    async with Follower([system.url]) as follower:
        held = await api.submit("gated")
        follower.add(held)
        await eventually(lambda: duties.runs(held))
        reload_nats(nats, f"max_payload: {FEW_BYTES}")

        async def refused() -> str:
            response = await api.http.post("/jobs", json={"type": "quick"})
            return response.json()["detail"] if response.status_code == 503 else ""

        detail = await eventually(refused, what="POST is a 503")
        assert f"max_payload of the NATS server ({FEW_BYTES} bytes)" in detail
        keyed = await api.http.post("/jobs", json={"type": "quick"}, headers={"Idempotency-Key": "one"})
        assert (keyed.status_code, "max_payload" in keyed.json()["detail"]) == (503, True)
        batch = await api.http.post("/jobs/batch", json={"jobs": [{"type": "quick"}] * 3})
        assert (batch.status_code, "max_payload" in batch.json()["detail"]) == (503, True)
        duties.open_gate()
        entry = await system["working"].wait_log("publish_refused", level="error")
        assert f"({FEW_BYTES} bytes)" in entry["message"]
        reload_nats(nats, "")
        await api.wait_until(held, "completed")

        async def accepted() -> bool:
            return (await api.http.post("/jobs", json={"type": "quick"})).status_code == 202

        await eventually(accepted, what="accepting resumes by itself")
        async with Observer(nats.url) as seen:
            await eventually(seen.empty)
    follower.check()
    assert [attempt for _, attempt, _ in duties.runs(held)] == [1]
