"""The effects of receivers on others that share the gateway: other requests, and the callbacks of other tenants."""

import asyncio
import socket
import statistics
import time
from contextlib import ExitStack

import pytest

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.sender import Sender
from heimdex_callbacks.url import parse_url
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from tests.support.api import Api
from tests.support.callback_attempts import END
from tests.support.keys import KEYS, entries
from tests.support.receiver import SECRET, Receiver, Stranger
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.system.callbacks.histories import wait_for_callback

SOON = LAUNCHERS / "gateway_that_calls_soon.py"
FLOOD = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000


def flood(connection: socket.socket) -> None:
    """Send until the caller disconnects."""
    while True:
        connection.sendall(FLOOD)


def until_it_hangs_up(connection: socket.socket) -> None:
    """Send nothing."""
    connection.recv(1)


async def seconds_of_a_get(api: Api, job_id: str) -> float:
    began = time.perf_counter()
    await api.get(job_id)
    return time.perf_counter() - began


@pytest.mark.full
async def test_sixteen_concurrent_floods_delay_no_other_request(calling: System, api: Api) -> None:
    calling.start_all(without=("gateway",))
    calling.start("gateway", launcher=SOON)
    await calling.ready()
    other = await api.submit()
    await api.wait_until(other, "completed")
    before = [await seconds_of_a_get(api, other) for _ in range(100)]
    during: list[float] = []
    with Stranger(flood) as stranger:
        jobs = [{"type": "mock_process", "callback_url": stranger.url}] * 16
        response = await api.http.post("/jobs/batch", json={"jobs": jobs})
        assert response.status_code == 202, response.text
        await eventually(lambda: stranger.calls >= 16)
        # Eight attempts to each. The first sixteen alone lasted 15 s.
        while stranger.calls < 16 * 8 and sum(during) < 20:
            during.append(await seconds_of_a_get(api, other))
        for job_id in response.json()["job_ids"]:
            *_, last = await wait_for_callback(api, job_id, "callback_given_up")
            assert last["error"].startswith("The receiver sent more than 256 pieces, ")
    after = [await seconds_of_a_get(api, other) for _ in range(100)]
    usual = max(statistics.median(before), statistics.median(after))
    busy = statistics.median(during)
    print(f"\n{len(during)} GETs while 16 floods ran: {busy * 1000:.1f} ms; beside none: {usual * 1000:.1f} ms")
    # 1.5 times, on a machine that does nothing else; one flood alone made it 1 s.
    assert busy < 1.5 * usual + 0.25


async def test_silent_receivers_of_one_tenant_leave_calls_for_another_tenant(
    calling: System, receiver: Receiver
) -> None:
    calling.env["HEIMDEX_API_KEYS"] = entries()
    calling.start_all()
    await calling.ready()
    with ExitStack() as stack:
        silent = [stack.enter_context(Stranger(until_it_hangs_up)) for _ in range(20)]
        most = 0

        def held() -> int:
            nonlocal most
            now = sum(stranger.open for stranger in silent)
            most = max(most, now)
            return now

        async with Api(calling.url, KEYS["acme"]) as acme, Api(calling.url, KEYS["beta"]) as beta:
            jobs = [{"type": "mock_process", "callback_url": stranger.url} for stranger in silent] * 16
            assert (await acme.http.post("/jobs/batch", json={"jobs": jobs})).status_code == 202
            await eventually(
                lambda: held() > 100, what=lambda: f"half of the gateway's 256 calls are theirs, not {most}"
            )
            job_id = await beta.submit(callback_url=receiver.url)
            await eventually(lambda: held() and receiver.of(job_id), what="the other tenant is called back")
            await wait_for_callback(beta, job_id)
        # A receiver may see that a call has ended after the next one began.
        assert most < 200


async def test_a_silent_name_server_delays_the_calls_of_no_other_tenant(calling: System, receiver: Receiver) -> None:
    calling.env["HEIMDEX_API_KEYS"] = entries()
    calling.start_all(without=("gateway",))
    calling.start("gateway", launcher=LAUNCHERS / "gateway_with_silent_name_servers.py")
    await calling.ready()
    async with Api(calling.url, KEYS["acme"]) as acme, Api(calling.url, KEYS["beta"]) as beta:
        urls = [f"http://{number}.silent.example/" for number in range(200)]
        jobs = [{"type": "mock_process", "callback_url": url} for url in urls]
        response = await acme.http.post("/jobs/batch", json={"jobs": jobs})
        assert response.status_code == 202, response.text
        for job_id in response.json()["job_ids"][-10:]:
            await acme.wait_until(job_id, "completed")
        job_id = await beta.submit(callback_url=f"http://shop.example:{receiver.port}/")
        (entry,) = await wait_for_callback(beta, job_id)
        assert entry["event"] == "callback_delivered"


async def test_concurrent_responses_are_parsed_in_small_parts() -> None:
    resolver = Resolver(1)
    poster = Sender([SECRET], AddressPolicy(["127.0.0.0/8"]), resolver, 16)
    # How long the event loop is busy each time that it goes round, in seconds that its thread has the CPU.
    rounds: list[float] = []

    async def go_round() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            rounds.append(time.thread_time() - began)

    with Stranger(flood) as stranger:
        watch = asyncio.create_task(go_round())
        answers = await asyncio.gather(*(poster.post(parse_url(stranger.url), END) for _ in range(16)))
        watch.cancel()
    await poster.close()
    resolver.close()
    print(f"\n16 floods at once: the event loop was busy for {max(rounds) * 1000:.1f} ms at most")
    assert all((answer.error or "").startswith("The receiver sent more than 256 pieces, ") for answer in answers)
    # A few may have been long for another reason, as a garbage collection is.
    assert sum(seconds > 0.05 for seconds in rounds) < 5
