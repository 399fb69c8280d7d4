"""An attempt that never began settles nothing, whatever NATS answers when the worker stops."""

from typing import Any, cast

import pytest

from heimdex import Context
from heimdex.binding import BoundFunction
from heimdex_contracts import pipelines, subjects
from heimdex_contracts.runtime.jetstream.connection import ApiError, Broker, JetStreamError, Stored
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.process import Process
from heimdex_contracts.runtime.settings import Settings
from heimdex_stage_worker.held_job import HeldJob
from heimdex_stage_worker.worker import StageWorker
from tests.integration.conftest import count, take
from tests.support.histories import due
from tests.support.recording_logger import RecordingLogger


async def _never(_: Context) -> None:
    raise AssertionError("the stage ran")


async def test_an_error_of_jetstream_while_the_worker_stops_is_no_attempt(
    ready: Broker, holder: Holder, journal: RecordingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = due()
    await Publisher(ready, cast("Any", journal)).publish(job, expected=0)
    (first,) = await take(holder, "extracting")
    first.nak()
    (again,) = await take(holder, "extracting")
    known = pipelines.load(["heimdex_contracts.mock_process"])
    process = Process(Settings(retry_backoff_seconds=()), "test", cast("Any", journal), ready)
    worker = StageWorker(process, known, "extracting", {job.type: BoundFunction(_never)})
    process.stopping.set()

    async def without_a_leader(*_: Any) -> Stored | None:
        raise JetStreamError(ApiError(503, 10008, "JetStream system temporarily unavailable"))

    monkeypatch.setattr(Publisher, "newest", without_a_leader)
    with pytest.raises(JetStreamError):
        await worker._run_held(HeldJob(again, job, worker._served[job.type, "extracting"]))
    last = await ready.last_message(subjects.JOBS, "heimdex.jobs.*.*")
    assert last is not None
    assert last.subject.startswith("heimdex.jobs.extracting.")
    assert await count(ready, subjects.ATTEMPTS) == 0
    assert not holder.held
