"""Fault 8: the same job published twice, delivered twice, its events in any order and any batches."""

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heimdex_contracts import messages, routes
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyMessage, AttemptFailed, Canceled, Completed, Due, Failed, Progress
from heimdex_contracts.mock_process import PIPELINES
from heimdex_status_store import queries
from heimdex_status_store.database import migrate
from heimdex_status_store.projection import job_rows
from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import events, fetch
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

PIPELINE = PIPELINES[0]
ORDER = {"pending": 0, "processing": 1, "completed": 2, "failed": 2, "canceled": 2}
NAMES = list(PIPELINE.stage_names)


class Story:
    """Writes the events of one run, as gateway and workers do: times and progress never decrease."""

    def __init__(self) -> None:
        self.events: list[AnyMessage] = []
        self._created = datetime(2026, 1, 1, tzinfo=UTC)
        self._at = self._created
        self._job: dict[str, Any] = {"job_id": str(uuid.uuid4()), "type": PIPELINE.type, "created_at": self._created}
        self.step = 0
        self.progress = 0
        self.started = False

    def add(self, kind: type[Any], progress: int | None = None, *, on_jobs: bool = True, **fields: Any) -> None:
        """Add the next event; those on HEIMDEX_JOBS count as steps."""
        self._at += timedelta(milliseconds=10)
        self.progress = max(self.progress, progress or 0)
        step = self.step if on_jobs or not self.events else self.step - 1
        self.events.append(kind(**self._job, step=step, at=self._at, progress=self.progress, **fields))
        self.step += on_jobs

    @property
    def now(self) -> datetime:
        return self._at


@st.composite
def runs(draw: st.DrawFn) -> list[AnyMessage]:
    """A finished run: retries, hand-backs, ticks, and any of the three terminal events."""
    story = Story()
    end = draw(st.sampled_from(["completed", "failed", "canceled"]))
    last = draw(st.integers(0, len(NAMES) - 1)) if end != "completed" else len(NAMES) - 1
    for index, stage in enumerate(NAMES[: last + 1]):
        reason = "handed_over" if index else "submitted"
        story.add(
            Due,
            routes.progress_along(PIPELINE.stage_names, PIPELINE, stage),
            stage=stage,
            reason=reason,
            started=story.started,
        )
        attempt = 0
        for _ in range(draw(st.integers(0, 3))):
            attempt += 1
            story.started = True
            for fraction in draw(st.lists(st.floats(0, 1), max_size=3)):
                percent = routes.progress_along(PIPELINE.stage_names, PIPELINE, stage, fraction)
                story.add(Progress, percent, on_jobs=False, stage=stage, attempt=attempt)
            if draw(st.booleans()):
                story.add(
                    AttemptFailed,
                    on_jobs=False,
                    stage=stage,
                    attempt=attempt,
                    error="no",
                    delay_seconds=0.1,
                    started_at=story.now,
                )
            else:
                attempt -= 1
                story.add(Due, stage=stage, reason="handed_back", attempts=attempt, started=True)
        story.started = True
    match end:
        case "completed":
            result = msgspec.Raw(msgspec.json.encode({"stages_completed": NAMES, "output": None}))
            story.add(Completed, 100, stage=NAMES[last], result=result)
        case "failed":
            story.add(Failed, stage=NAMES[last], attempt=attempt + 1, error="it failed")
        case "canceled":
            story.add(Canceled, stage=NAMES[last])
    return story.events


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[AnyMessage], list[list[AnyMessage]]]:
    """Draw a run and its deliveries: in any order, some repeated, in batches of any size."""
    run_events = draw(runs())
    again = draw(st.lists(st.sampled_from(run_events), max_size=len(run_events)))
    shuffled = draw(st.permutations([*run_events, *again]))
    batches = []
    while shuffled:
        size = draw(st.integers(1, len(shuffled)))
        batches.append(list(shuffled[:size]))
        shuffled = shuffled[size:]
    return run_events, batches


@pytest.fixture
async def connection(database_url: str) -> Any:
    opened = await asyncpg.connect(database_url)
    await migrate(opened)
    yield opened
    await opened.close()


async def record(connection: asyncpg.Connection, batch: list[AnyMessage]) -> dict[str, Any] | None:
    """Record a batch as the recorder does. Returns what GET would return then."""
    await queries.record(connection, job_rows(batch), event_rows(batch))
    row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1", batch[0].job_id)
    return None if row is None else dict(row)


async def history(connection: asyncpg.Connection, job_id: str) -> list[tuple[Any, ...]]:
    rows = await connection.fetch("SELECT * FROM job_events WHERE job_id = $1 ORDER BY step, attempt", job_id)
    return [tuple(row) for row in rows]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(telling=tellings())
async def test_any_order_of_a_runs_events_gives_the_same_row_and_no_poller_sees_an_older_state(
    connection: asyncpg.Connection, telling: tuple[list[AnyMessage], list[list[AnyMessage]]]
) -> None:
    run_events, batches = telling
    row = None
    for event in run_events:
        row = await record(connection, [event])
    expected = row, await history(connection, run_events[0].job_id)
    await connection.execute("DELETE FROM jobs")
    await connection.execute("DELETE FROM job_events")

    before: dict[str, Any] | None = None
    for batch in batches:
        after = await record(connection, batch)
        if before is not None:
            assert after is not None
            assert ORDER[after["status"]] >= ORDER[before["status"]]
            assert ORDER[before["status"]] < 2 or after["status"] == before["status"]
            assert after["progress"] >= before["progress"]
            assert after["updated_at"] >= before["updated_at"]
            assert after["created_at"] == before["created_at"]
            assert (after["step"], after["attempt"]) >= (before["step"], before["attempt"])
        before = after
    assert (before, await history(connection, run_events[0].job_id)) == expected
    await connection.execute("DELETE FROM jobs")
    await connection.execute("DELETE FROM job_events")


@pytest.mark.allows("repeated", "superseded", "dropped", "stray")
async def test_a_job_that_is_published_twice_has_one_terminal_event(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    system.start_all(stages=STAGES)
    system.start("working")
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url], pause=0.01) as follower:
        at = messages.now()
        ids = [str(uuid.uuid4()) for _ in range(5)]
        for job_id in ids:
            due = Due(job_id=job_id, type="steady", step=0, created_at=at, at=at, stage="working", reason="submitted")
            # With no expectation and no id of its own: as a stranger's script would.
            for _ in range(2):
                await seen.nc.request(f"heimdex.jobs.working.{job_id}", messages.encode(due), timeout=10)
        follower.add(*ids)
        for job_id in ids:
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        for job_id in ids:
            kinds = [event["kind"] for event in await events(database_url, job_id)]
            assert kinds == ["submitted", "handed_over", "completed"]
    follower.check()


@pytest.mark.allows("repeated", "superseded")
async def test_a_whole_run_that_is_published_again_changes_no_row(
    system: System, api: Api, nats: NatsServer, database_url: str
) -> None:
    system.start_all()
    await system.ready()
    async with (
        Observer(nats.url, "heimdex.jobs.*.*", "heimdex.attempts.*.*") as seen,
        Follower([system.url]) as follower,
    ):
        jobs = [await api.submit(), await api.submit(fail_at_stage="analyzing")]
        for job_id in jobs:
            await api.wait_until(job_id, "completed", "failed")
        follower.add(*jobs)
        await eventually(seen.empty)
        everything = "SELECT * FROM jobs ORDER BY id"
        before = await fetch(database_url, everything)
        replayed = list(seen.seen)
        random.Random(1).shuffle(replayed)
        for msg in replayed:
            await seen.nc.request(msg.subject, msg.data, timeout=10)
        await eventually(seen.empty)
        await eventually(lambda: all(follower.seen(job_id) for job_id in jobs))
        assert await fetch(database_url, everything) == before
    follower.check()
