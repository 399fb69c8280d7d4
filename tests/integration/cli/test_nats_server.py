"""EmbeddedNats against the real server."""

import json
import socket
import urllib.request
from pathlib import Path

import nats
import pytest

from heimdex_cli.embedded.nats_server import EmbeddedNats
from heimdex_cli.errors import ServerFailed


async def _stored(url: str) -> int:
    connection = await nats.connect(url)
    try:
        return (await connection.jetstream().stream_info("S")).state.messages
    finally:
        await connection.close()


async def _store_one(url: str) -> None:
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name="S", subjects=["s"])
        await stream.publish("s", b"kept")
    finally:
        await connection.close()


async def test_an_acknowledged_message_is_still_there_after_kill_and_start(folder: Path) -> None:
    with EmbeddedNats(folder / "nats") as server:
        url, pid = server.url, server.pid
        await _store_one(url)
        server.kill()
        assert server.pid is None
        assert server.died() is None, "killed on purpose"
        server.start()
        assert server.url == url
        assert server.pid not in (None, pid)
        assert await _stored(url) == 1


def test_no_process_is_left_after_stop(folder: Path, processes_below) -> None:
    with EmbeddedNats(folder / "nats") as server:
        assert len(processes_below(folder)) == 1
    assert server.pid is None
    assert processes_below(folder) == []


def test_a_server_that_another_owner_left_is_replaced(folder: Path, eventually) -> None:
    left = EmbeddedNats(folder / "nats")
    left.start()
    with EmbeddedNats(folder / "nats", port=left.port) as server:
        assert server.pid is not None
        eventually(lambda: left.died() is not None)
        assert server.port == left.port


def test_start_reports_which_port_is_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = EmbeddedNats(folder / "nats", port=port)
        with pytest.raises(ServerFailed, match=f"port {port}") as caught:
            server.start()
        assert "address already in use" in caught.value.detail
    assert server.pid is None


def test_every_acknowledged_publish_is_synced_and_monitoring_answers(folder: Path) -> None:
    with EmbeddedNats(folder / "nats", monitor_port=0) as server:
        assert server.monitor_url is not None
        with urllib.request.urlopen(f"{server.monitor_url}/jsz?config=true", timeout=5) as answer:
            assert json.load(answer)["config"]["sync_always"] is True


def test_a_folder_with_spaces_and_quotes_works(folder: Path) -> None:
    with EmbeddedNats(folder / 'a "b" c') as server:
        assert server.pid is not None
