"""A Postgres on another host: a network namespace with its own link, on which packets can be lost.

A proxy cannot simulate a dead link: its kernel acknowledges the packets that the proxy drops, and resets unknown
connections. Here nothing answers any more, for the existing connections or for all. It needs Linux, root and `ip`
(iproute2).
"""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from heimdex_cli.embedded.postgres import DATABASE, USER, EmbeddedPostgres

_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class OtherHost:
    """A host that for TCP is another one, behind a link. `address` is its IP address."""

    def __init__(self) -> None:
        if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("a dead link can be simulated only on Linux, as root and with `ip` (iproute2)")
        # The addresses are from the range for network tests (RFC 2544). Each host has four, and the process id keeps
        # those of tests that run at the same time apart.
        number = (os.getpid() * 4 + next(_numbers) % 4) % 2**15
        self._name = f"heimdex-{number}"
        self._near = f"hx{number:05d}"
        network = f"198.{18 + number // 2**14}.{number % 2**14 // 64}"
        first = number % 64 * 4
        self.address = f"{network}.{first + 2}"
        self.remove()  # a test that was killed may have left it
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._near, "type", "veth", "peer", "name", "far", "netns", self._name)
            _ip("addr", "add", f"{network}.{first + 1}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            self._far("addr", "add", f"{self.address}/30", "dev", "far")
            # The lookup of its own address must come after the rules that lose packets.
            self._far("rule", "add", "pref", "100", "lookup", "local")
            self._far("rule", "del", "pref", "0")
            self.connect()
        except subprocess.CalledProcessError as error:
            self.remove()
            pytest.skip(f"a network namespace with a link cannot be created here: {error.stderr}")

    def run(self, work: Callable[[], _T]) -> _T:
        """Call `work` on the other host. Its sockets, and the processes that it starts, are on that host too."""

        def enter_and_work() -> _T:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self._name}") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:  # only this thread enters the namespace, and it ends here
            return thread.submit(enter_and_work).result()

    def lose_connections(self) -> int:
        """Drop every packet of the existing connections, as a NAT does after a flush of its table. New ones work.

        Returns the number of existing connections.
        """
        listed = subprocess.run(
            ["ip", "netns", "exec", self._name, "ss", "-Htn"], check=True, capture_output=True, text=True
        )
        peers = {line.split()[4].rpartition(":")[2] for line in listed.stdout.splitlines()}
        for port in peers:
            for side in ("sport", "dport"):
                self._far("rule", "add", "pref", "10", "ipproto", "tcp", side, port, "blackhole")
        return len(peers)

    def disconnect(self) -> None:
        """Drop every packet in both directions, as for a host without power or a cut cable."""
        self._far("link", "set", "far", "down")

    def connect(self) -> None:
        """Bring the link up."""
        self._far("link", "set", "lo", "up")
        self._far("link", "set", "far", "up")

    def remove(self) -> None:
        """Remove the host and its link. The processes that were started on it must have ended."""
        for words in (("link", "del", self._near), ("netns", "del", self._name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)

    def _far(self, *words: str) -> None:
        _ip("-n", self._name, *words)


class OtherPostgres(EmbeddedPostgres):
    """A Postgres on another host, reached over TCP. `local_url` uses the unix socket, which faults do not affect."""

    def __init__(self, directory: Path, host: OtherHost) -> None:
        super().__init__(directory)
        self.host = host

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@{self.host.address}/{DATABASE}"

    @property
    def local_url(self) -> str:
        return super().url

    def start(self) -> None:
        self.host.run(super().start)

    def _settings(self) -> list[str]:
        hba = self._data / "pg_hba.conf"
        hba.write_text("local all all trust\nhost all all 0.0.0.0/0 trust\n")
        return [*super()._settings(), "-c", f"listen_addresses={self.host.address}"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
