"""EmbeddedPostgres against the real server."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import asyncpg
import pytest

from heimdex_cli.embedded.postgres import EmbeddedPostgres


async def _run(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_committed_rows_are_still_there_after_kill_and_start(folder: Path, processes_below) -> None:
    with EmbeddedPostgres(folder / "pg") as server:
        url = server.url
        await _run(url, "CREATE TABLE t (i int)")
        await _run(url, "INSERT INTO t VALUES (7)")
        server.kill()
        assert processes_below(folder) == []
        server.start()
        assert server.url == url
        assert await _run(url, "SELECT i FROM t") == 7
        assert await _run(url, "SELECT current_database() || ' ' || current_user") == "heimdex heimdex"
    assert processes_below(folder) == []


async def test_it_starts_again_after_only_the_postmaster_was_killed(folder: Path, eventually) -> None:
    with EmbeddedPostgres(folder / "pg") as server:
        await _run(server.url, "CREATE TABLE t (i int)")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: server.died() == -signal.SIGKILL)
        # At once: the backends of the dead postmaster may still be there.
        server.start()
        assert await _run(server.url, "SELECT count(*) FROM t") == 0


async def test_a_server_that_another_owner_left_is_replaced(folder: Path, eventually) -> None:
    left = EmbeddedPostgres(folder / "pg")
    left.start()
    await _run(left.url, "CREATE TABLE t (i int)")
    with EmbeddedPostgres(folder / "pg") as server:
        eventually(lambda: left.died() is not None)
        assert await _run(server.url, "SELECT count(*) FROM t") == 0


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
async def test_it_starts_again_after_each_way_to_stop(folder: Path, mode) -> None:
    with EmbeddedPostgres(folder / "pg") as server:
        server.stop(mode)
        assert server.pid is None
        assert server.died() is None
        server.start()
        assert await _run(server.url, "SELECT 1") == 1


async def test_a_path_too_long_for_a_socket_works_and_stays_the_same(folder: Path) -> None:
    long = folder / ("long" * 25) / "with, comma"
    with EmbeddedPostgres(long) as server:
        url = server.url
        assert await _run(url, "SELECT 1") == 1
    assert EmbeddedPostgres(long).url == url
    socket_folder = url.partition("host=")[2]
    assert os.stat(socket_folder).st_mode & 0o077 == 0
    os.rmdir(socket_folder)


async def test_an_interrupted_initdb_starts_again(folder: Path) -> None:
    half_made = folder / "pg" / "data.unfinished"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(folder / "pg") as server:
        assert await _run(server.url, "SELECT 1") == 1


def test_a_stale_pid_file_that_names_another_process_does_not_prevent_the_start(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    server.stop()
    data = f"{folder}/pg/data"
    # Of the server's own user: Postgres takes the process of any other user for no server.
    owner = os.stat(data).st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=owner) as stranger:
        lines = [str(stranger.pid), data, "1", "5432", "", "", "", "ready"]
        Path(data, "postmaster.pid").write_text("\n".join(lines) + "\n")
        try:
            with server:
                assert asyncio.run(_run(server.url, "SELECT 1")) == 1
        finally:
            stranger.kill()


def test_parents_are_opened_for_search_only(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs Postgres as another user")
    private = folder / "private"
    private.mkdir(mode=0o700)
    with EmbeddedPostgres(private / "pg") as server:
        assert private in server.opened_folders
        assert private.stat().st_mode & 0o777 == 0o701
