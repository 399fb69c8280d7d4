"""Any order of starting works, and an invalid setting is reported in one line."""

import socket
import subprocess

import pytest

from heimdex_cli.embedded.ports import free_port
from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.servers import NatsServer, PostgresServer
from tests.support.services import MOCK_STAGES, clean_environment, command
from tests.support.waiting import eventually

SERVICES = ("gateway", *MOCK_STAGES, "status-store")


@pytest.mark.parametrize("first", SERVICES)
async def test_a_service_started_first_and_alone_waits_for_nats_and_postgres_and_then_works(
    new_system: NewSystem, nats: NatsServer, own_postgres: PostgresServer, first: str
) -> None:
    nats.stop()
    own_postgres.stop()
    system = new_system(nats.url, own_postgres.url)
    alone = system.start(first)
    await alone.wait_log("nats_waiting")
    async with Api(system.url) as api:
        if first == "gateway":
            await eventually(api.is_up)
            ready = (await api.http.get("/readyz")).json()
            assert (ready["nats"]["ok"], ready["postgres"]["ok"]) == (False, False)
        nats.start()
        own_postgres.start()
        system.start_all(without=(first,))
        await system.ready()
        job_id = await api.submit()
        await api.wait_until(job_id, "completed")
    assert alone.running
    assert len(alone.logged("nats_waiting")) == 1


async def test_the_status_store_waits_for_postgres_alone(
    new_system: NewSystem, nats: NatsServer, own_postgres: PostgresServer
) -> None:
    own_postgres.stop()
    system = new_system(nats.url, own_postgres.url)
    system.start_all()
    await system["status-store"].wait_log("postgres_waiting")
    async with Api(system.url) as api:
        await eventually(api.is_up)
        for stage in MOCK_STAGES:
            await system[stage].wait_log("ready")
        await system["gateway"].wait_log("ready")
        job_id = await api.submit()
        own_postgres.start()
        await system["status-store"].wait_log("ready")
        await eventually(lambda: completed(api, job_id))


async def completed(api: Api, job_id: str) -> bool:
    response = await api.http.get(f"/jobs/{job_id}")
    return response.status_code == 200 and response.json()["status"] == "completed"


@pytest.mark.parametrize("service", SERVICES)
async def test_a_waiting_service_exits_with_0_on_sigterm(new_system: NewSystem, nats: NatsServer, service: str) -> None:
    nats.stop()
    system = new_system(nats.url, "postgresql://nobody@localhost:1/nothing")
    waiting = system.start(service)
    await waiting.wait_log("nats_waiting")
    assert await waiting.terminate() == 0


BAD = {
    "HEIMDEX_NATS_URL": "http://nowhere",
    "HEIMDEX_DATABASE_URL": "mysql://heimdex:s3cret@localhost/heimdex",
    "HEIMDEX_PORT": "http",
    "HEIMDEX_MOCK_TIME_SCALE": "fast",
    "HEIMDEX_RETRY_BACKOFF_SECONDS": "1,two",
    "HEIMDEX_ACK_WAIT_SECONDS": "0",
    "HEIMDEX_STAGE_CONCURRENCY": "none",
    "HEIMDEX_STREAM_REPLICAS": "2",
    "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "-1",
    "HEIMDEX_LOG_LEVEL": "loud",
    "HEIMDEX_PIPELINES": "no.such.module",
    "HEIMDEX_API_KEYS": "acme:s3cret",
    "HEIMDEX_RATE_LIMIT": "often",
    "HEIMDEX_CORS_ORIGINS": "app.example.com",
}


def refused(service: str, **env: str) -> str:
    """Return the one line of a service that refuses these settings."""
    done = subprocess.run(
        command(service), env=clean_environment() | env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "s3cret" not in done.stderr
    return done.stderr


REFUSALS = [
    *(("gateway", variable) for variable in BAD),
    *((service, name) for service in ("extracting", "status-store") for name in ("HEIMDEX_NATS_URL", "HEIMDEX_PORT")),
    ("extracting", "HEIMDEX_PIPELINES"),
    ("status-store", "HEIMDEX_DATABASE_URL"),
]


@pytest.mark.parametrize(("service", "variable"), REFUSALS)
def test_an_invalid_setting_is_one_line_that_names_it_and_exit_code_2(service: str, variable: str) -> None:
    assert variable in refused(service, **{variable: BAD[variable]})


def test_a_stage_that_does_not_exist_is_one_line_that_names_those_that_do_and_exit_code_2() -> None:
    errors = refused("painting")
    assert "painting" in errors
    for stage in MOCK_STAGES:
        assert stage in errors


def test_a_port_in_use_is_one_line_that_names_its_variable_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert "HEIMDEX_PORT" in refused("gateway", HEIMDEX_PORT=str(listener.getsockname()[1]))


def test_a_host_of_another_machine_is_one_line_that_names_its_variable_and_exit_code_2() -> None:
    assert "HEIMDEX_HOST" in refused("gateway", HEIMDEX_HOST="host.invalid", HEIMDEX_PORT=str(free_port()))
