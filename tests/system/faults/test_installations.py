"""Two installations on one NATS account: the second one is refused, and takes no message of the first one."""

import asyncio
import subprocess
import uuid
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import asyncpg_trek
import msgspec
import nats.errors
import nats.micro as micro
import pytest
from asyncpg_trek.asyncpg import AsyncpgBackend

from heimdex_contracts.runtime.jetstream.installations import DATABASE, INSTALLATION
from heimdex_status_store.database import MIGRATIONS
from tests.conftest import NewSystem
from tests.support import servers
from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.receiver import SECRET
from tests.support.rows import execute, fetch, statuses
from tests.support.servers import PostgresServer
from tests.support.services import LAUNCHERS, Service, System, clean_environment, command
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.faults.test_nats_lost import restart

SOON = LAUNCHERS / "store_that_compares_soon.py"


async def id_of(database_url: str) -> str | None:
    """Return the installation id of this database."""
    rows = await fetch(database_url, "SELECT id FROM job_installation")
    return rows[0]["id"] if rows else None


async def database_of(database_url: str) -> str:
    """Return the database's own id."""
    database: str = (await fetch(database_url, "SELECT database FROM job_installation"))[0]["database"]
    return database


async def mark_of(seen: Observer) -> str | None:
    answer = await seen.api(f"STREAM.INFO.{JOBS}")
    mark: str | None = answer["config"].get("metadata", {}).get(INSTALLATION)
    return mark


async def write_mark(seen: Observer, mark: str | None) -> None:
    """Write the mark as `nats stream edit --metadata` does."""
    config = (await seen.api(f"STREAM.INFO.{JOBS}"))["config"]
    metadata = {name: value for name, value in config["metadata"].items() if name != INSTALLATION}
    if mark is not None:
        metadata[INSTALLATION] = mark
    answer = await seen.api(f"STREAM.UPDATE.{JOBS}", {**config, "metadata": metadata})
    assert "error" not in answer


async def marked(seen: Observer, database_url: str) -> str:
    """Wait until database and stream have the same installation id, and return it."""

    async def both() -> str | None:
        mark = await mark_of(seen)
        return mark if mark is not None and mark == await id_of(database_url) else None

    return str(await eventually(both))


async def refusal(store: Service) -> str:
    """Return the sentence with which this status store exits (code 2)."""
    assert await store.ended() == 2
    (entry,) = store.logged("cannot_serve")
    assert entry == store.logs[-1]
    return str(entry["message"])


async def is_refused(api: Api, *named: str) -> None:
    """Wait until the gateway accepts nothing, and POST and /readyz name these."""

    async def says_why() -> bool:
        ready = await api.http.get("/readyz")
        reason = ready.json()["nats"]["detail"]
        return ready.status_code == 503 and all(name in reason for name in named)

    await eventually(says_why)
    job = {"type": "mock_process"}
    for path, body in (("/jobs", job), ("/jobs/batch", {"jobs": [job, job]})):
        for headers in ({}, {"Idempotency-Key": "one"}):
            answer = await api.http.post(path, json=body, headers=headers)
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers
            assert all(name in answer.json()["detail"] for name in named)


def take_over(system: System) -> str:
    """Run the command and return its output."""
    env = {name: value for name, value in system.env.items() if value is not None}
    done = subprocess.run(
        [*command("status-store"), "--take-over"],
        env=clean_environment() | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    return done.stdout


async def test_a_second_installation_is_refused_and_the_first_one_is_unharmed(
    new_system: NewSystem, nats: Any, postgres: PostgresServer, script: Script
) -> None:
    urls = [servers.new_database(postgres) for _ in range(2)]
    first, second = (new_system(nats.url, url, **script.env) for url in urls)
    first.start_all(stages=STAGES)
    await first.ready()
    async with Observer(nats.url) as seen, Api(first.url) as api, Api(second.url) as other:
        ours = await marked(seen, urls[0])
        script.write("grinding", "gate")
        held = await api.submit("scripted")
        await eventually(lambda: script.runs("grinding", held), what="a job of the first one runs")

        # A new database, while the first one's store lives.
        second.start("gateway")
        sentence = await refusal(second.start("status-store", launcher=SOON))
        assert ours in sentence
        assert await database_of(urls[0]) in sentence
        assert await database_of(urls[1]) in sentence
        await is_refused(other, ours, await database_of(urls[1]))
        assert await id_of(urls[1]) is None
        assert await mark_of(seen) == ours

        # A database that is of another installation already.
        theirs = str(uuid.uuid4())
        await execute(urls[1], f"UPDATE installation SET id = '{theirs}'")
        sentence = await refusal(second.start("status-store"))
        assert ours in sentence
        assert theirs in sentence
        assert "--take-over" in sentence
        await is_refused(other, ours, theirs)

        assert await fetch(urls[1], "SELECT id FROM jobs") == []
        assert (await api.http.get("/readyz")).status_code == 200
        assert {msg.subject.split(".")[3] for msg in seen.seen if msg.subject.startswith("heimdex.jobs.")} == {held}
        script.open_gate()
        await api.wait_until(held, "completed")
        assert not first["status-store"].logged("installations_mixed")


async def test_after_a_take_over_the_streams_belong_to_the_other_and_the_first_one_is_refused(
    new_system: NewSystem, nats: Any, postgres: PostgresServer
) -> None:
    urls = [servers.new_database(postgres) for _ in range(2)]
    first, second = (new_system(nats.url, url) for url in urls)
    first.start("gateway")
    first.start("status-store")
    await first.ready()
    async with Observer(nats.url) as seen, Api(first.url) as api, Api(second.url) as other:
        ours = await marked(seen, urls[0])
        output = await asyncio.to_thread(take_over, second)
        theirs = await marked(seen, urls[1])
        assert ours in output
        assert theirs in output
        sentence = await refusal(first["status-store"])
        assert ours in sentence
        assert theirs in sentence
        await is_refused(api, ours, theirs)
        second.start_all()
        await second.ready()
        job_id = await other.submit()
        await other.wait_until_listed([job_id], status="completed")
        assert await statuses(urls[0], [job_id]) == {}
        assert theirs in await refusal(first.start("status-store"))
        assert "already" in await asyncio.to_thread(take_over, second)


@pytest.mark.full
async def test_a_refused_database_does_not_adopt_the_id_while_the_other_store_restarts(
    new_system: NewSystem, nats: Any, postgres: PostgresServer
) -> None:
    urls = [servers.new_database(postgres) for _ in range(2)]
    first, second = (new_system(nats.url, url) for url in urls)
    first.start("status-store")
    await first.ready()
    async with Observer(nats.url) as seen:
        ours = await marked(seen, urls[0])
        await refusal(second.start("status-store", launcher=SOON))
        await first["status-store"].terminate()
        waiting = second.start("status-store", launcher=SOON)
        await waiting.wait_log("installation_waiting")
        await first.start("status-store").wait_log("ready")
        assert ours in await refusal(waiting)
        assert await id_of(urls[1]) is None
        # Where it is gone for good, the new database takes its place.
        await first["status-store"].terminate()
        await second.start("status-store", {"TEST_QUIET_SECONDS": "1"}, SOON).wait_log("ready")
        assert await id_of(urls[1]) == ours
        assert await database_of(urls[1]) in await refusal(first.start("status-store", launcher=SOON))


@pytest.mark.full
async def test_a_copy_of_the_database_is_another_database_and_gets_its_own_id_by_taking_over(
    system: System, nats: Any, database_url: str, new_system: NewSystem
) -> None:
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url) as seen:
        ours = await marked(seen, database_url)
        await system["status-store"].terminate()
        original, name = urlsplit(database_url).path.strip("/"), f"copy_{uuid.uuid4().hex}"
        copy, server = (urlunsplit(urlsplit(database_url)._replace(path=f"/{path}")) for path in (name, "postgres"))
        await execute(server, f"CREATE DATABASE {name} TEMPLATE {original}")
        await system.start("status-store").wait_log("ready")
        second = new_system(nats.url, copy)
        second.start("gateway")
        sentence = await refusal(second.start("status-store", launcher=SOON))
        databases = [await database_of(url) for url in (copy, database_url)]
        assert all(database in sentence for database in databases)
        async with Api(second.url) as api:
            await is_refused(api, *databases)
        await asyncio.to_thread(take_over, second)
        theirs = await marked(seen, copy)
        assert theirs != ours
        sentence = await refusal(system["status-store"])
        assert ours in sentence
        assert theirs in sentence
        await second.start("status-store").wait_log("ready")


@pytest.mark.full
async def test_an_emptied_database_joins_the_streams_installation_again(
    system: System, nats: Any, database_url: str
) -> None:
    system.start("status-store")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url) as seen:
        ours = await marked(seen, database_url)
        before = await database_of(database_url)
        await execute(database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")

        async def adopted() -> bool:
            try:
                return await id_of(database_url) == ours
            except asyncpg.PostgresError:
                return False

        await eventually(adopted)
        assert await database_of(database_url) != before
        # Also where it is done while no store runs.
        for store in system.all("status-store"):
            assert await store.terminate() == 0
        await execute(database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        await system.start("status-store").wait_log("installation_adopted", installation=ours)
        assert await marked(seen, database_url) == ours


async def test_an_old_deployment_is_marked_beside_a_store_that_does_not_know_installations(
    system: System, nats: Any, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    backend = AsyncpgBackend(connection)
    plan = await asyncpg_trek.plan(backend, MIGRATIONS, "lists", asyncpg_trek.Direction.up)
    await asyncpg_trek.execute(backend, plan)
    await connection.close()
    system.start("gateway")
    await system.ready()
    async with Observer(nats.url) as seen, Api(system.url) as api:
        job_id = await api.submit()
        before = await micro.add_service(seen.nc, name="heimdex-status-store", version="0.0.1")
        await system.start("status-store").wait_log("ready")
        await marked(seen, database_url)
        await api.wait_until_listed([job_id])
        await before.stop()


@pytest.mark.allows("topology")
async def test_a_stream_that_lost_its_mark_or_its_messages_is_marked_again(
    system: System, nats: Any, database_url: str
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen, Api(system.url) as api:
        ours = await marked(seen, database_url)
        await write_mark(seen, None)
        await eventually(lambda: _is_marked(seen, ours))
        await seen.api(f"STREAM.DELETE.{JOBS}")
        await eventually(lambda: _is_marked(seen, ours))
        await restart(nats, wipe=True)
        await eventually(lambda: _is_marked(seen, ours))
        await eventually(lambda: _accepts(api))
        assert system["status-store"].running


async def _is_marked(seen: Observer, mark: str) -> bool:
    try:
        return await mark_of(seen) == mark
    except (KeyError, TimeoutError, nats.errors.Error):
        return False  # it is being made


async def _accepts(api: Api) -> bool:
    return (await api.http.post("/jobs", json={"type": "mock_process"})).status_code == 202


async def test_when_the_streams_mark_changes_a_running_store_exits_and_its_gateway_accepts_nothing(
    system: System, nats: Any, database_url: str
) -> None:
    system.env |= {"HEIMDEX_CALLBACK_SECRET": SECRET}
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url) as seen, Api(system.url) as api:
        ours = await marked(seen, database_url)

        async def pulls_callbacks() -> bool:
            return bool((await seen.api("CONSUMER.INFO.HEIMDEX_CALLBACKS.gateway"))["num_waiting"])

        async def pulls_none() -> bool:
            return not await pulls_callbacks()

        await eventually(pulls_callbacks)
        await write_mark(seen, "another")
        sentence = await refusal(system["status-store"])
        assert ours in sentence
        assert "another" in sentence
        await is_refused(api, ours, "another")
        await eventually(pulls_none)
        # What is stored now is nobody's here.
        stored = await seen.nc.request("heimdex.jobs.extracting.x", b"{}")
        assert "another" in await refusal(system.start("status-store"))
        assert await seen.count() == 1
        await seen.api(f"STREAM.MSG.DELETE.{JOBS}", {"seq": msgspec.json.decode(stored.data)["seq"]})
        await write_mark(seen, ours)
        await system.start("status-store").wait_log("ready")
        await eventually(lambda: _accepts(api))
        await eventually(pulls_callbacks)


async def test_a_worker_logs_that_two_installations_share_the_account(system: System, nats: Any) -> None:
    async with Observer(nats.url) as seen:
        for name in ("one", "two"):
            metadata = {INSTALLATION: name, DATABASE: f"database of {name}"}
            await micro.add_service(seen.nc, name="heimdex-status-store", version="0.0.1", metadata=metadata)
        system.start("extracting", launcher=LAUNCHERS / "worker_that_compares_soon.py")
        entry = await system["extracting"].wait_log("installations_mixed")
        assert entry["installations"] == ["one", "two"]
        assert entry["databases"] == ["database of one", "database of two"]


def test_the_command_prints_its_usage() -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command("status-store"), *arguments],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    code, usage, errors = run("--help")
    assert (code, errors) == (0, "")
    assert "--take-over" in usage
    for wrong in (("--takeover",), ("--take-over", "now"), ("",)):
        assert run(*wrong) == (2, "", usage)
