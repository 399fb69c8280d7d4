"""The claims of two workers on one hand-over: the broker accepts only the successor of the claim that was read."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from heimdex_contracts import messages, subjects
from heimdex_contracts.messages import Claim, Due
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_stage_worker.claims import Begun, Claims, ClaimTaken
from tests.support.histories import START, due
from tests.support.recording_logger import RecordingLogger


def claims(broker: Broker, journal: RecordingLogger) -> Claims:
    return Claims(broker, asyncio.Event(), cast("Any", journal))


async def stored(broker: Broker, job: Due) -> Claim:
    last = await broker.last_message(subjects.CHECKPOINTS, subjects.checkpoint_subject(job.stage, job.job_id))
    assert last is not None
    return messages.decode_claim(last.subject, last.data)


async def test_the_second_of_two_workers_that_read_the_same_claim_is_declined(
    ready: Broker, journal: RecordingLogger
) -> None:
    one, other, job = claims(ready, journal), claims(ready, journal), due()
    sequence = await one.claim(job, 2, START, 0)
    assert sequence
    assert await one.claim(job, 2, START, 0) == sequence, "its own claim, whose first confirmation was lost"
    with pytest.raises(ClaimTaken):
        await other.claim(job, 2, START, 0)
    begun = await other.begun(job)
    assert (begun.attempt, begun.reported, begun.sequence) == (2, False, sequence)
    assert await other.claim(job, 3, START, sequence)
    assert (await stored(ready, job)).attempt == 3


async def test_a_thawed_worker_reports_no_end_after_another_has_claimed(
    ready: Broker, journal: RecordingLogger
) -> None:
    frozen, other, job = claims(ready, journal), claims(ready, journal), due()
    sequence = await frozen.claim(job, 2, START, 0)
    assert sequence is not None
    assert await other.claim(job, 3, START, sequence)
    with pytest.raises(ClaimTaken):
        await frozen.report_end(job, 2, START, sequence, vanished=False)
    assert await other.begun(job) == Begun(3, False, True, START, 0, (await other.begun(job)).sequence)


async def test_a_thawed_worker_does_not_overwrite_the_claim_of_a_later_visit(
    ready: Broker, journal: RecordingLogger
) -> None:
    frozen, other, job = claims(ready, journal), claims(ready, journal), due()
    later = msgspec.structs.replace(job, step=job.step + 4, run=2, reason="retried")
    assert await other.claim(later, 2, START, 0)
    with pytest.raises(ClaimTaken):
        await frozen.report_end(job, 1, START, 0, vanished=False)
    assert (await stored(ready, job)).step == later.step
    await frozen.remove(job)
    assert (await stored(ready, job)).step == later.step, "nor does it remove that claim"
    await other.remove(later)
    last = await ready.last_message(subjects.CHECKPOINTS, subjects.checkpoint_subject(job.stage, job.job_id))
    assert last is None
