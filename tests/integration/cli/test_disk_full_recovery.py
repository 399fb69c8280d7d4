"""The watchdog of a server whose disk was full. (With a real full disk: tests/system/faults/test_full.py.)"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heimdex_cli.embedded.disk_full_recovery import FullDiskWatch

WRITE_ERROR = (
    503,
    b'{"status":"unavailable","error":"JetStream stream \'$G > A\' write error: no space left on device"}',
)
RECOVERING = (503, b'{"status":"unavailable","error":"JetStream is not current with the meta leader"}')
HEALTHY = (200, b'{"status":"ok"}')


@pytest.fixture
def health() -> Iterator[Any]:
    """A server whose /healthz returns `health.answer`; `health.requests` counts the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = server_state.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)
            server_state.requests += 1

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server_state = SimpleNamespace(answer=HEALTHY, requests=0, url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server_state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as running:
        yield running
        running.kill()


def test_only_a_server_that_stopped_serving_a_stream_is_ended_and_only_once_space_is_free(
    folder: Path, health: Any, process: "subprocess.Popen[bytes]", eventually
) -> None:
    messages: list[str] = []
    server: Any = SimpleNamespace(monitor_url=health.url, pid=process.pid, directory=folder)
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    watch = FullDiskWatch(server, messages.append, poll_seconds=0.05, min_free_bytes=2 * free)
    watch.start()
    health.answer, asked = WRITE_ERROR, health.requests
    eventually(lambda: health.requests > asked + 2)
    watch.stop()
    health.answer = HEALTHY
    watch = FullDiskWatch(server, messages.append, poll_seconds=0.05, min_free_bytes=1)
    watch.start()
    for answer in (HEALTHY, RECOVERING):
        health.answer, asked = answer, health.requests
        eventually(lambda asked=asked: health.requests > asked + 2)
    assert process.poll() is None
    assert messages == []
    health.answer = WRITE_ERROR
    eventually(lambda: process.poll() == -15)
    watch.stop()
    assert "disk was full" in messages[0]


def test_a_server_without_monitoring_is_left_alone(folder: Path) -> None:
    server: Any = SimpleNamespace(monitor_url=None, pid=None, directory=folder)
    watch = FullDiskWatch(server, print)
    watch.start()
    watch.stop()
