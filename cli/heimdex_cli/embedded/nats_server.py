"""A nats-server with JetStream on the loopback interface, for the embedded system and the tests."""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from heimdex_cli.embedded.watchdog import ChildRecord, end
from heimdex_cli.errors import ServerFailed

# Long, because JetStream opens the port only after it has read its whole store.
_READY_SECONDS = 60.0
_STOP_SECONDS = 15.0


class EmbeddedNats:
    """A server whose streams are in `directory`. They survive `stop`, `kill` and a restart, which uses the same port.

    port: 0 chooses a free one. monitor_port: None means no HTTP monitoring, 0 chooses a free port.
    sync_interval: "always" (an acknowledged publish survives a power failure), or a duration such as "2m".
    log_path: default `directory/nats.log`.

    A directory has one server: `start` ends a server that another process left running there.
    """

    name = "nats"

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        *,
        monitor_port: int | None = None,
        sync_interval: str = "always",
        log_path: Path | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.set_ports(port, monitor_port)
        self._sync_interval = sync_interval
        self.log_path = log_path or self.directory / "nats.log"
        self._config_path = self.directory / "nats.conf"
        self._pid_path = self.directory / "nats.pid"
        self._server_name = "heimdex-" + hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        self.child = ChildProcess(
            [Path(sys.executable).with_name("nats-server"), "-c", self._config_path],
            log_path=self.log_path,
            stop_seconds=_STOP_SECONDS,
            rank=1,
        )

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`. A port that `start` chooses is known only after the first start."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str | None:
        """`http://127.0.0.1:PORT`; None without HTTP monitoring."""
        return f"http://127.0.0.1:{self.monitor_port}" if self.monitor_port else None

    @property
    def pid(self) -> int | None:
        """The process id; None unless the server is running."""
        return self.child.pid

    def died(self) -> int | None:
        """Return the exit code if the server ended without a request, else None."""
        return self.child.died()

    def set_ports(self, port: int, monitor_port: int | None) -> None:
        """Set the ports for the next start; the values are those of the constructor."""
        self.port, self.monitor_port = port, monitor_port
        self._choose_port = port == 0
        self._choose_monitor_port = monitor_port == 0

    def start(self) -> None:
        """Start the server, unless it is running, and return when it accepts clients.

        Raises ServerFailed when it ends at once (the port is in use) or is not ready within 60 s.
        """
        if self.pid is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        end(self.leftovers())
        # Another process can take a free port between its choice and the start of the server.
        for attempts_left in reversed(range(5)):
            try:
                self._start_once()
            except ServerFailed:
                if not self._choose_port or not attempts_left:
                    raise
            else:
                # Clients know the address now, so that later starts must keep it.
                self._choose_port = self._choose_monitor_port = False
                return
            self.port = 0

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Send SIGTERM, and SIGKILL when the server runs longer than 15 s or `hurry()` is true."""
        self.child.stop(hurry)

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would end it; `start` works afterwards."""
        self.child.kill()

    def leftovers(self) -> list[ChildRecord]:
        """Return the server that an earlier owner of this directory left running: a list of at most one record."""
        try:
            process = psutil.Process(int(self._pid_path.read_text()))
            if str(self._config_path) in process.cmdline() and process.pid != self.pid:
                return [ChildRecord(process.pid, process.create_time(), 15, _STOP_SECONDS, rank=1)]
        except (OSError, ValueError, psutil.Error):
            pass  # the pid file is missing or damaged, or its process has ended
        return []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_once(self) -> None:
        if self.port == 0:
            self.port = free_port()
        if self._choose_monitor_port:
            self.monitor_port = free_port()
        self._config_path.write_text(self._config())
        self.child.start()
        try:
            self.child.wait_until_ready(f"nats-server on port {self.port}", self._is_ready, _READY_SECONDS)
        except BaseException:
            self.child.kill()
            raise

    def _config(self) -> str:
        # A JSON string is also a string of the nats-server configuration format, with the same escapes.
        lines = [
            "# Overwritten at every start by heimdex_cli.embedded.nats_server.",
            f"server_name: {self._server_name}",
            f"listen: 127.0.0.1:{self.port}",
            f"pid_file: {json.dumps(str(self._pid_path))}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(self.directory))}",
            f"  sync_interval: {self._sync_interval}",
            "}",
        ]
        if self.monitor_port:
            lines.append(f"http: 127.0.0.1:{self.monitor_port}")
        return "\n".join(lines) + "\n"

    def _is_ready(self) -> bool:
        """Whether this server, and not another one, answers on the port: its first line has its name,
        `INFO {"server_name": ...}`.
        """
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection,
                connection.makefile("rb") as lines,
            ):
                greeting = lines.readline()
        except OSError:
            return False
        return greeting.startswith(b"INFO ") and self._server_name.encode() in greeting
