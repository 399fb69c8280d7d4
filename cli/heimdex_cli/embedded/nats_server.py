"""One nats-server with JetStream on the loopback interface; the embedded system and the tests use it."""

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from heimdex_cli.embedded.watchdog import ChildRecord, end
from heimdex_cli.errors import ServerFailed, tail

# JetStream opens the port only after it has read its whole store.
_READY_SECONDS = 60.0
_STOP_SECONDS = 15.0


class EmbeddedNats:
    """A server whose streams live in `directory` and survive `stop`, `kill` and `start` again, on the same
    port.

    port: 0 chooses a free one. monitor_port: None means no HTTP monitoring, 0 chooses a free port.
    sync_interval: "always" (an acknowledged publish survives a power failure), or a duration such as "2m".
    log_path: default `directory/nats.log`.

    One directory, one server: a server that another process left running there is ended by `start`.
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
        """`nats://127.0.0.1:PORT`; known once it has been started."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str | None:
        """`http://127.0.0.1:PORT`, or None."""
        return f"http://127.0.0.1:{self.monitor_port}" if self.monitor_port else None

    @property
    def pid(self) -> int | None:
        """None unless it is running."""
        return self.child.pid

    def died(self) -> int | None:
        """Its exit code if it ended without our asking."""
        return self.child.died()

    def set_ports(self, port: int, monitor_port: int | None) -> None:
        """Choose the ports anew, as in the constructor, for the next start."""
        self.port, self.monitor_port = port, monitor_port
        self._port_is_ours_to_choose = port == 0
        self._monitor_port_is_ours_to_choose = monitor_port == 0

    def start(self) -> None:
        """Start it and return when it accepts clients; nothing happens when it is running.

        Raises ServerFailed when it ends at once (the port is taken) or is not ready within 60 s.
        """
        if self.pid is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        end(self.leftovers())
        # A port that was free when it was chosen can be another's a moment later.
        for tries_left in reversed(range(5)):
            try:
                self._start_once()
            except ServerFailed:
                if not self._port_is_ours_to_choose or not tries_left:
                    raise
            else:
                # From now on it is the address that clients know.
                self._port_is_ours_to_choose = self._monitor_port_is_ours_to_choose = False
                return
            self.port = 0

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM, and SIGKILL when it takes longer than 15 s or once `hurry()` is true."""
        self.child.stop(hurry)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` works afterwards."""
        self.child.kill()

    def leftovers(self) -> list[ChildRecord]:
        """The server that an earlier owner of this directory left running: at most one."""
        try:
            process = psutil.Process(int(self._pid_path.read_text()))
            if str(self._config_path) in process.cmdline() and process.pid != self.pid:
                return [ChildRecord(process.pid, process.create_time(), 15, _STOP_SECONDS, rank=1)]
        except (OSError, ValueError, psutil.Error):
            pass  # no pid file, or nobody behind it
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
        if self._monitor_port_is_ours_to_choose:
            self.monitor_port = free_port()
        self._config_path.write_text(self._config())
        self.child.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.child.kill()
            raise

    def _config(self) -> str:
        # A JSON string is a string of this format too, with the same escapes.
        lines = [
            "# Written anew at every start by heimdex_cli.embedded.nats_server.",
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

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._greets():
            if self.pid is None:
                code = self.died()
                raise ServerFailed(
                    f"nats-server on port {self.port} ended with exit code {code}; its log: {self.log_path}",
                    tail(self.log_path),
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"nats-server on port {self.port} was not ready within {_READY_SECONDS:.0f} s; "
                    f"its log: {self.log_path}",
                    tail(self.log_path),
                )
            time.sleep(0.02)

    def _greets(self) -> bool:
        """Whether this very server answers there: its first line is `INFO {"server_name": ...}`."""
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection,
                connection.makefile("rb") as lines,
            ):
                greeting = lines.readline()
        except OSError:
            return False
        return greeting.startswith(b"INFO ") and self._server_name.encode() in greeting
