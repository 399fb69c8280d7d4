"""The recorder between a real NATS server and a real Postgres: recorded, then acknowledged, and nothing blocks it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from heimdex_contracts import messages, subjects
from heimdex_contracts.messages import AnyMessage, AttemptFailed, Follows, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_contracts.runtime.jetstream.leases import Leases
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.micro import Counters
from heimdex_status_store.database import Database
from heimdex_status_store.recorder import Recorder
from tests.integration.conftest import NewBroker, consumer, count, make_topology, take
from tests.support.histories import Writer, new_id
from tests.support.recording_logger import RecordingLogger
from tests.support.rows import execute, fetch
from tests.support.servers import PostgresServer
from tests.support.waiting import eventually

StartRecorder = Callable[..., Awaitable[Recorder]]


@pytest_asyncio.fixture
async def start_recorder(
    new_broker: NewBroker, database_url: str, journal: RecordingLogger
) -> AsyncIterator[StartRecorder]:
    """Start another recorder in this process."""
    running: list[tuple[Recorder, Database, Leases, asyncio.Task[None]]] = []

    async def start(url: str = "") -> Recorder:
        broker = await new_broker()
        topology = make_topology(broker, journal)
        await topology.ensure()
        log = cast("Any", journal)
        database = Database(url or database_url, log)
        holder = Holder(broker, topology)
        leases = Leases(holder, 2)
        counters = Counters("status-store", "heimdex.*.*.*", "status-store")
        recorder = Recorder(holder, database, DeadLetters(broker, log), counters, log)
        leases.start()
        running.append((recorder, database, leases, asyncio.create_task(recorder.run())))
        await recorder.start()
        return recorder

    yield start
    loop = asyncio.get_running_loop()
    for recorder, database, leases, work in running:
        await recorder.stop(loop.time() + 5)
        await asyncio.wait({work}, timeout=5)
        work.cancel()
        await leases.stop()
        await database.close()


async def publish(broker: Broker, event: AnyMessage) -> None:
    match event:
        case Progress():
            subject = subjects.progress_subject(event.stage, event.job_id)
        case AttemptFailed():
            subject = subjects.attempt_subject(event.stage, event.job_id)
        case _:
            subject = subjects.job_subject(messages.token(event), event.job_id)
    ack = await broker.publish(subject, messages.encode(event), {}, timeout=10)
    assert ack.error is None


async def all_recorded(broker: Broker) -> bool:
    """Whether the store has acknowledged everything."""
    for stream in (subjects.JOBS, subjects.ATTEMPTS, subjects.PROGRESS):
        info = await consumer(broker, subjects.STATUS_STORE, stream)
        if info["num_pending"] or info["num_ack_pending"]:
            return False
    return True


async def statuses(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT status, count(*) FROM jobs GROUP BY status")
        return {entry["status"]: entry["count"] for entry in rows}
    finally:
        await connection.close()


def completed_run(params: msgspec.Raw = messages.NOTHING, output: msgspec.Raw = messages.NOTHING) -> Writer:
    writer = Writer(params=params, output=output)
    while writer.finish_stage():
        pass
    return writer


@pytest.mark.containers
async def test_events_are_recorded_and_then_acknowledged(
    ready: Broker, start_recorder: StartRecorder, database_url: str
) -> None:
    await start_recorder()
    for _ in range(20):
        for event in completed_run().events:
            await publish(ready, event)
    await eventually(lambda: all_recorded(ready))
    assert await statuses(database_url) == {"completed": 20}


@pytest.mark.allows("unusable")
async def test_a_message_that_postgres_refuses_is_a_dead_letter_and_the_hundred_others_are_recorded(
    ready: Broker, start_recorder: StartRecorder, database_url: str, journal: RecordingLogger
) -> None:
    for number in range(101):
        if number == 50:
            late, job_id = "9999-12-31T23:59:59.999999-12:00", new_id()
            core = f'"event":"completed","job_id":"{job_id}","type":"mock_process","step":3,"stage":"indexing"'
            payload = f'{{{core},"created_at":"{late}","at":"{late}","result":{{}}}}'.encode()
            await ready.publish(subjects.job_subject("completed", job_id), payload, {})
        else:
            await publish(ready, Writer().due)
    await start_recorder()
    await eventually(lambda: all_recorded(ready))
    assert await statuses(database_url) == {"pending": 100}
    assert await count(ready, subjects.UNUSABLE) == 1
    (entry,) = journal.of("message_unusable")
    assert "Postgres refused it" in entry["reason"]


#: JSON that msgspec passes over without a look, and whether Postgres takes it; or that no reader takes.
RUBBISH = {
    "not UTF-8": (b'{"a":"\xff"}', False),
    "half a character": (b'{"a":"\\ud800"}', False),
    "half a character in UTF-8": (b'{"a":"\xed\xa0\x80"}', False),
    "a NUL": (b'{"a":"\\u0000"}', False),
    "a line break": (b'{"a":"\n"}', False),
    "no escape": (b'{"a":"\\q"}', False),
    "no number": (b'{"a":01}', False),
    "too deep": (b'{"a":%b}' % (b"[" * 50_000 + b"]" * 50_000), False),
    "beyond any float": (b'{"a":1e999}', True),
    "deep": (b'{"a":%b}' % (b"[" * 900 + b"]" * 900), True),
    "a key twice": (b'{"a":1,"a":2}', True),
}


@pytest.mark.allows("unusable")
@pytest.mark.parametrize("place", ["params", "output", "result"])
async def test_a_job_with_broken_params_or_outputs_is_a_dead_letter_and_the_others_are_recorded(
    ready: Broker, start_recorder: StartRecorder, database_url: str, place: str
) -> None:
    fine = {}
    for name, (json, is_fine) in RUBBISH.items():
        writer = Writer(params=msgspec.Raw(json)) if place == "params" else Writer(output=msgspec.Raw(json))
        writer.finish_stage()
        if place == "result":
            writer.finish_stage()
            writer.finish_stage()
            writer.events[-1] = msgspec.structs.replace(writer.events[-1], finished=(), result=msgspec.Raw(json))
        for event in writer.events[-1:]:
            await publish(ready, event)
        if is_fine:
            fine[writer.due.job_id] = name
        await publish(ready, Writer(params=msgspec.Raw(b"{}")).due)
    await start_recorder()
    await eventually(lambda: all_recorded(ready))
    rows = await fetch(database_url, "SELECT id::text, params::text, message::text, result::text FROM jobs")
    assert {row["id"] for row in rows if row["params"] != "{}"} == fine.keys()
    assert len(rows) == len(fine) + len(RUBBISH)
    assert await count(ready, subjects.UNUSABLE) == len(RUBBISH) - len(fine)
    for row in rows:
        if row["id"] in fine:
            text = RUBBISH[fine[row["id"]]][0].decode()
            assert text in {"params": row["params"], "output": row["message"], "result": row["result"]}[place]
    history = await fetch(database_url, "SELECT DISTINCT job_id::text FROM job_events")
    assert {entry["job_id"] for entry in history} == {row["id"] for row in rows}, "nothing remains of the others"


async def test_a_write_that_postgres_refuses_for_another_reason_than_its_data_is_recorded_later(
    ready: Broker, start_recorder: StartRecorder, database_url: str, journal: RecordingLogger
) -> None:
    await start_recorder()
    await publish(ready, Writer().due)
    await eventually(lambda: all_recorded(ready))
    await execute(
        database_url,
        """CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE 'could not read block 7' USING errcode = '58030'; END $$""",
        "CREATE TRIGGER breaks BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION break()",
    )
    for event in completed_run().events:
        await publish(ready, event)
    await eventually(lambda: journal.of("not_recorded_yet"))
    await execute(database_url, "DROP TRIGGER breaks ON jobs")
    await eventually(lambda: all_recorded(ready))
    assert await statuses(database_url) == {"pending": 1, "completed": 1}
    assert await count(ready, subjects.UNUSABLE) == 0


@pytest.mark.containers
async def test_two_stores_at_once_record_everything_once(
    ready: Broker, start_recorder: StartRecorder, database_url: str
) -> None:
    await start_recorder()
    await start_recorder()
    params, output = msgspec.Raw(b'{"a" : 1.50}'), msgspec.Raw(b'"%b"' % (b"x" * 5000))
    writers = [completed_run(params, output) for _ in range(100)]
    for step in range(4):
        for writer in writers:
            await publish(ready, writer.events[step])
    await eventually(lambda: all_recorded(ready))
    assert await statuses(database_url) == {"completed": 100}
    rows = await fetch(database_url, "SELECT DISTINCT params::text, outputs::text FROM jobs")
    assert [row["params"] for row in rows] == ['{"a" : 1.50}']
    assert msgspec.json.decode(rows[0]["outputs"], type=dict[str, msgspec.Raw]) == dict.fromkeys(
        ("extracting", "analyzing"), output
    )


async def test_many_large_jobs_are_recorded_in_several_statements(
    ready: Broker, start_recorder: StartRecorder, database_url: str
) -> None:
    params = msgspec.Raw(b'"%b"' % (b"x" * 60_000))
    for _ in range(300):
        await publish(ready, Writer(params=params).due)
    await start_recorder()
    await eventually(lambda: all_recorded(ready))
    assert await fetch(database_url, "SELECT count(*), sum(length(params::text)) AS length FROM jobs") == [
        {"count": 300, "length": 300 * 60_002}
    ]


async def test_nothing_is_acknowledged_during_a_postgres_outage_and_nothing_is_lost_after_it(
    ready: Broker, start_recorder: StartRecorder, own_postgres: PostgresServer, topology: Topology
) -> None:
    await start_recorder(own_postgres.url)
    await publish(ready, Writer().due)
    await eventually(lambda: all_recorded(ready))
    own_postgres.kill()
    for _ in range(10):
        await publish(ready, Writer().due)

    async def all_taken() -> bool:
        return bool((await consumer(ready, subjects.STATUS_STORE))["num_ack_pending"] == 10)

    await eventually(all_taken)
    own_postgres.start()
    await eventually(lambda: all_recorded(ready))
    assert await statuses(own_postgres.url) == {"pending": 11}


async def test_a_tick_that_overtakes_its_hand_over_is_not_lost(
    ready: Broker, start_recorder: StartRecorder, database_url: str
) -> None:
    """A backlog on HEIMDEX_JOBS does not delay the ticks: Postgres must return a state that the stream has returned."""
    writer = Writer()
    writer.tick(0.5)
    due, tick = writer.events
    await start_recorder()
    await publish(ready, tick)

    async def taken() -> bool:
        info = await consumer(ready, subjects.STATUS_STORE, subjects.PROGRESS)
        return bool(info["delivered"]["stream_seq"] == 1)

    await eventually(taken)
    await publish(ready, due)
    await eventually(lambda: all_recorded(ready))
    assert await statuses(database_url) == {"processing": 1}


async def test_a_failed_attempt_that_overtakes_its_hand_over_leaves_the_job_restorable(
    ready: Broker, start_recorder: StartRecorder, database_url: str
) -> None:
    writer = Writer()
    writer.fail_attempt()
    due, *_, failed = writer.events
    await start_recorder()
    await publish(ready, failed)

    async def taken() -> bool:
        info = await consumer(ready, subjects.STATUS_STORE, subjects.ATTEMPTS)
        return bool(info["delivered"]["stream_seq"] == 1)

    await eventually(taken)
    await publish(ready, due)
    await eventually(lambda: all_recorded(ready))
    (row,) = await fetch(database_url, "SELECT attempt, message::text FROM jobs")
    assert row["attempt"] == 1
    assert row["message"] is not None
    assert messages.decode_stored(row["message"].encode()) == due


async def test_a_recorded_message_acknowledges_its_predecessor(
    ready: Broker, holder: Holder, start_recorder: StartRecorder, database_url: str
) -> None:
    """A worker killed between its publish and its ack leaves a predecessor that nobody else acknowledges."""
    writer = Writer()
    await publish(ready, writer.due)
    (held,) = await take(holder, "extracting")
    writer.finish_stage()
    sequence = held.metadata.sequence
    following = msgspec.structs.replace(writer.events[-1], follows=Follows(sequence, held.reply))
    await publish(ready, following)
    await start_recorder()

    async def acknowledged() -> bool:
        return bool((await consumer(ready, "extracting"))["num_ack_pending"] == 0)

    await eventually(acknowledged)
    assert await count(ready) == 1  # the hand-over, which analyzing has not taken
    assert await statuses(database_url) == {"processing": 1}


async def test_an_acknowledgement_is_never_published_to_another_kind_of_subject(
    ready: Broker, start_recorder: StartRecorder
) -> None:
    heard: list[Any] = []

    async def hear(msg: Any) -> None:
        heard.append(msg.subject)

    await ready.nc.subscribe("victim.>", cb=hear)
    await ready.nc.subscribe("$JS.ACK.SOMEBODY_ELSES.>", cb=hear)
    for subject in ("victim.subject", "$JS.ACK.SOMEBODY_ELSES.c.1.1.1.1.0", "$JS.ACK.>", "a b", "\r\nPUB x 0"):
        writer = Writer()
        writer.finish_stage()
        await publish(ready, msgspec.structs.replace(writer.events[-1], follows=Follows(1, subject)))
    await start_recorder()
    await eventually(lambda: all_recorded(ready))
    await ready.nc.flush()
    assert heard == []
