"""Terminates a nats-server that disabled a stream because the disk was full, once the disk has free space again.

After a failed write, nats-server 2.15 answers no publish on that stream until it is restarted; /healthz reports the
error. The supervisor restarts the server. Acknowledged messages are on the disk, and as after a crash none is lost.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import httpx

from heimdex_cli.embedded.nats_server import EmbeddedNats

POLL_SECONDS: Final = 2.0
#: The free space that is needed for a restart: with less, the first hand-overs would fill the disk again.
MIN_FREE_BYTES: Final = 8 * 1024 * 1024


class FullDiskWatch:
    """Watches one server in a thread, from `start` to `stop`. Does nothing for a server without HTTP monitoring.

    announce: called from that thread, with one sentence that gives the reason for the restart. poll_seconds: the delay
    between two requests to the server. min_free_bytes: as MIN_FREE_BYTES.
    """

    def __init__(
        self,
        server: EmbeddedNats,
        announce: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> None:
        self._poll_seconds = poll_seconds
        self._min_free_bytes = min_free_bytes
        self._server = server
        self._announce = announce
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="full-disk", daemon=True)

    def start(self) -> None:
        """Start the thread, if the server has HTTP monitoring."""
        if self._server.monitor_url is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread. After the return it does not terminate the server any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        with httpx.Client(timeout=1, trust_env=False) as client:
            while not self._stopping.wait(self._poll_seconds):
                pid = self._server.pid
                if (
                    pid is not None
                    and self._has_disabled_stream(client)
                    and self._has_free_space()
                    and not self._stopping.is_set()
                ):
                    self._announce(
                        "nats disabled a stream when its disk was full; the disk has free space again, so nats is "
                        "restarted."
                    )
                    # Not `stop`: the supervisor does not restart a server that was stopped on purpose.
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)

    def _has_disabled_stream(self, client: httpx.Client) -> bool:
        try:
            response = client.get(f"{self._server.monitor_url}/healthz")
        except httpx.HTTPError:
            return False  # the server is starting or hangs, which is not the concern of this watch
        return response.status_code == 503 and "write error" in response.text

    def _has_free_space(self) -> bool:
        try:
            disk = os.statvfs(self._server.directory)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= self._min_free_bytes
