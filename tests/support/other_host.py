"""A Postgres on another host: a network namespace with a link of its own, so that its packets can be lost.

A proxy cannot play a link that dies: its kernel acknowledges what it swallows, and resets what it does not know. Here
nothing answers any more, for the connections that exist or for every one. It takes Linux, root and `ip` (iproute2).
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
    """Another host as far as TCP can tell, one link away; `address` is its own."""

    def __init__(self) -> None:
        if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("a link that dies can be played by root on Linux only, with `ip` (iproute2)")
        # Of the range for tests of networks (RFC 2544); four addresses a host, of as many hosts as tests run at once.
        number = (os.getpid() * 4 + next(_numbers) % 4) % 2**15
        self._name = f"heimdex-{number}"
        self._near = f"hx{number:05d}"
        network = f"198.{18 + number // 2**14}.{number % 2**14 // 64}"
        first = number % 64 * 4
        self.address = f"{network}.{first + 2}"
        self.remove()  # what a test left that was killed
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._near, "type", "veth", "peer", "name", "far", "netns", self._name)
            _ip("addr", "add", f"{network}.{first + 1}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            self._far("addr", "add", f"{self.address}/30", "dev", "far")
            # Its own address comes after the rules by which packets are lost.
            self._far("rule", "add", "pref", "100", "lookup", "local")
            self._far("rule", "del", "pref", "0")
            self.connect()
        except subprocess.CalledProcessError as error:
            self.remove()
            pytest.skip(f"a network namespace with a link to it cannot be made here: {error.stderr}")

    def run(self, work: Callable[[], _T]) -> _T:
        """Call `work` there: what it listens on, and the processes that it starts, are there too."""

        def there() -> _T:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self._name}") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:  # a namespace is a thread's, and this thread ends with it
            return thread.submit(there).result()

    def lose_connections(self) -> int:
        """As a NAT's table that was flushed: no packet of the connections that exist gets through; new ones work.

        Returns how many there were.
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
        """As a host without power, or a cut cable: no packet gets through, in either direction."""
        self._far("link", "set", "far", "down")

    def connect(self) -> None:
        """The link works."""
        self._far("link", "set", "lo", "up")
        self._far("link", "set", "far", "up")

    def remove(self) -> None:
        """With its link; what was started there must have ended."""
        for words in (("link", "del", self._near), ("netns", "del", self._name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)

    def _far(self, *words: str) -> None:
        _ip("-n", self._name, *words)


class OtherPostgres(EmbeddedPostgres):
    """On another host, over TCP; `local_url` goes by the unix socket, past every fault of the link."""

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
