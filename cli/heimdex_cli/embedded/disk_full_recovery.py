"""Ends a nats-server that gave a stream up when its disk was full, once there is room again.

nats-server 2.15 answers no publish on a stream after a write that failed, until it is started anew; /healthz says so.
The supervisor starts it again. What was acknowledged is on the disk: as after a crash, nothing of it is lost.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import httpx

from heimdex_cli.embedded.nats_server import EmbeddedNats

LOOK_SECONDS: Final = 2.0
#: As much as must be free: with less the first hand-overs would fill the disk again.
ROOM_BYTES: Final = 8 * 1024 * 1024


class FullDiskWatch:
    """A thread of its own from `start` to `stop`; does nothing for a server without HTTP monitoring.

    announce: is told in one sentence why the server is ended, from that thread.
    """

    def __init__(self, server: EmbeddedNats, announce: Callable[[str], None]) -> None:
        self._server = server
        self._announce = announce
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="full-disk", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        if self._server.monitor_url is not None:
            self._thread.start()

    def stop(self) -> None:
        """Returns when it will end nothing any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        with httpx.Client(timeout=1, trust_env=False) as client:
            while not self._stopping.wait(LOOK_SECONDS):
                pid = self._server.pid
                if pid is not None and self._has_given_up(client) and self._has_room() and not self._stopping.is_set():
                    self._announce("nats gave a stream up when its disk was full; there is room again, so it ends.")
                    # Not `stop`: that would be an end on purpose, after which nobody starts it.
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)

    def _has_given_up(self, client: httpx.Client) -> bool:
        try:
            answer = client.get(f"{self._server.monitor_url}/healthz")
        except httpx.HTTPError:
            return False  # it starts, or hangs: that is for others to see
        return answer.status_code == 503 and "write error" in answer.text

    def _has_room(self) -> bool:
        try:
            disk = os.statvfs(self._server.directory)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= ROOM_BYTES
