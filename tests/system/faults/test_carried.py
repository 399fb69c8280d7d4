"""Params and outputs reach every stage and the result, byte for byte, whatever happens to the workers.

The jobs are published as a gateway publishes them, and only the workers run: the last message of a job is its end.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from heimdex_contracts import messages
from heimdex_contracts.messages import AnyJobMessage, Completed, Failed
from tests.support import histories
from tests.support.pipelines import carrying
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import Observer

TITLE = "Äpfel – 苹果 🍎"


@pytest.fixture
def carried(system: System, scratch: Path) -> System:
    system.env |= carrying.env(scratch)
    return system


async def submit(seen: Observer, job_type: str = "film", **params: Any) -> str:
    """Publish a job that is due at the first stage of its type."""
    route = carrying.STAGES if job_type == "film" else ("printing",)
    film = msgspec.json.encode(carrying.Film(**params)) if job_type == "film" else b""
    now = messages.now()
    job = histories.due(
        type=job_type,
        stage=route[0],
        route=route,
        params=msgspec.Raw(film) if film else messages.NOTHING,
        created_at=now,
        at=now,
    )
    await seen.nc.jetstream().publish(f"heimdex.jobs.{route[0]}.{job.job_id}", messages.encode(job))
    return job.job_id


async def end_of(seen: Observer, job_id: str) -> AnyJobMessage:
    """Wait for the job's end. Its params are the same in every message of it."""

    def ended() -> bool:
        return seen.subjects("heimdex.jobs", job_id)[-1:] in (["completed"], ["failed"])

    await eventually(ended, what="the job ends")
    all_of_it = [messages.decode_stored(msg.data) for msg in seen.messages("heimdex.jobs", job_id)]
    assert len({bytes(each.params) for each in all_of_it}) == 1
    return all_of_it[-1]


def check(end: AnyJobMessage, attempt: int = 1, scenes: int = 3) -> None:
    """Check every byte of the params, the outputs and the result."""
    assert isinstance(end, Completed), end
    seconds = [0.5 * number for number in range(scenes)]
    outputs = [bytes(run.output) for run in end.finished]
    assert outputs == [
        msgspec.json.encode({"title": TITLE, "seconds": seconds}),
        msgspec.json.encode({"loudness": sum(seconds), "attempt": attempt}),
        b"",
    ]
    result = msgspec.json.decode(end.result, type=dict[str, msgspec.Raw])
    assert bytes(result["output"]) == msgspec.json.encode(
        {"title": TITLE, "scenes": scenes, "loudness": sum(seconds), "attempt": attempt, "stage": "printing"}
    )


async def start(system: System, *stages: str) -> None:
    for stage in stages:
        system.start(stage)
    await system.ready()


async def test_params_and_outputs_reach_every_stage_and_a_shared_name_runs_each_types_code(
    carried: System, nats: NatsServer
) -> None:
    await start(carried, *carrying.STAGES)
    async with Observer(nats.url) as seen:
        film, poster = await submit(seen, title=TITLE, scenes=5), await submit(seen, "poster")
        check(await end_of(seen, film), scenes=5)
        printed = await end_of(seen, poster)
        assert isinstance(printed, Completed)
        assert msgspec.json.decode(printed.result)["output"] == "a poster of poster"


@pytest.mark.allows("repeated", "dropped")
async def test_a_worker_killed_between_publish_and_ack_hands_over_the_same_bytes_once(
    carried: System, nats: NatsServer, died: Path
) -> None:
    stage = "mixing-down"
    carried.start(stage, launcher=LAUNCHERS / "dies_before_ack.py")
    await start(carried, *(other for other in carrying.STAGES if other != stage))
    async with Observer(nats.url) as seen:
        job_id = await submit(seen, title=TITLE)
        assert await carried[stage].ended() == -9
        check(await end_of(seen, job_id))
        await start(carried, stage)
        await carried[stage].wait_log("delivery_dropped", job_id=job_id)
        assert seen.subjects("heimdex.jobs", job_id) == [*carrying.STAGES, "completed"]


@pytest.mark.allows("repeated", "isolated")
async def test_an_attempt_in_a_process_of_its_own_has_params_and_outputs_and_returns_its_own(
    carried: System, nats: NatsServer
) -> None:
    await start(carried, *carrying.STAGES)
    async with Observer(nats.url) as seen:
        job_id = await submit(seen, title=TITLE, fault="kill")

        async def completed() -> bool:
            # Two or three workers are lost: a first attempt that vanished before its first tick does not count.
            if not carried["mixing-down"].running:
                await start(carried, "mixing-down")
            return bool(seen.messages("heimdex.jobs.completed", job_id))

        await eventually(completed, what="the job is completed by an isolated attempt")
        check(await end_of(seen, job_id), attempt=3)
        assert carried["mixing-down"].logged("attempt_isolated", job_id=job_id)


async def test_a_hand_back_keeps_params_and_outputs(carried: System, nats: NatsServer, scratch: Path) -> None:
    await start(carried, *carrying.STAGES)
    async with Observer(nats.url) as seen:
        job_id = await submit(seen, title=TITLE, fault="gate")
        await carried["mixing-down"].wait_log("attempt_started", job_id=job_id)
        assert await carried["mixing-down"].terminate() == 0
        carrying.open_gate(scratch)
        await start(carried, "mixing-down")
        check(await end_of(seen, job_id))
        assert seen.subjects("heimdex.jobs", job_id).count("mixing-down") == 2


@pytest.mark.allows("errors")
async def test_a_stage_that_asks_for_a_delay_is_retried_after_it(carried: System, nats: NatsServer) -> None:
    await start(carried, *carrying.STAGES)
    async with Observer(nats.url) as seen:
        job_id = await submit(seen, title=TITLE, fault="later")
        check(await end_of(seen, job_id), attempt=2)
        (failed,) = seen.payloads("heimdex.attempts", job_id)
        assert (failed["error"], failed["delay_seconds"]) == ("the mixer is busy", 0.2)


@pytest.mark.allows("errors")
async def test_an_output_that_json_cannot_hold_fails_the_attempts_and_keeps_the_earlier_ones(
    carried: System, nats: NatsServer
) -> None:
    carried.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = "0.1"
    await start(carried, *carrying.STAGES)
    async with Observer(nats.url) as seen:
        end = await end_of(seen, await submit(seen, title=TITLE, fault="nan"))
        assert isinstance(end, Failed)
        assert end.error == (
            "The stage mixing-down failed on attempt 2 of 2: the output contains a NaN or an infinity, which JSON does"
            " not have: output.loudness"
        )
        assert end.traceback is None
        assert [run.stage for run in end.finished] == ["cutting"]
        assert end.finished[0].output
