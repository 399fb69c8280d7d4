"""The data folder of an embedded system (`.heimdex/`): the lock of its owner, a record of the owner's processes, and
the secret that signs callbacks.

system.py locks the folder before anything else, and ends the processes that an earlier owner left running.
"""

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path

from heimdex_cli.embedded.watchdog import ChildRecord, end
from heimdex_cli.errors import Unusable


class DataFolder:
    """A data folder, locked for this process from `lock` to `unlock`; the kernel releases the lock if it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.secret_path = self.path / "callback-secret"
        self._record_path = self.path / "processes.json"
        self._lock: TextIOWrapper | None = None

    def lock(self) -> None:
        """Create and lock the folder. Raises Unusable when another process has the lock, or the folder cannot be
        created.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise Unusable(f"The data folder {self.path} cannot be used: {error.strerror}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise Unusable(
                f"A system is running already on the data in {self.path} (process {owner or 'unknown'}): "
                "stop it first, or start this one in another folder."
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def unlock(self) -> None:
        """Release the lock, if this process has it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def record(self, processes: Iterable[tuple[str, ChildRecord]]) -> None:
        """Save the running processes with their names, for `end_leftovers` of a later owner."""
        text = json.dumps([{"name": name, **asdict(child)} for name, child in processes], indent=1)
        unfinished = self._record_path.with_suffix(".unfinished")
        unfinished.write_text(text)
        unfinished.replace(self._record_path)

    def callback_secret(self) -> str:
        """Return the secret for HEIMDEX_CALLBACK_SECRET. The first call creates it, in a file that only this user can
        read.
        """
        try:
            return self.secret_path.read_text().strip()
        except FileNotFoundError:
            secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
            unfinished = self.secret_path.with_suffix(".unfinished")
            unfinished.touch(mode=0o600)
            unfinished.write_text(f"{secret}\n")
            unfinished.replace(self.secret_path)
            return secret

    def end_leftovers(self) -> list[str]:
        """End the recorded processes that still run, because their owner and its watchdog were both killed.

        Returns their names. The owner must call it before it starts any process.
        """
        try:
            record = json.loads(self._record_path.read_text())
            names = {
                ChildRecord(**{key: value for key, value in each.items() if key != "name"}): each["name"]
                for each in record
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return []  # the record is missing or damaged
        return [names[child] for child in end(list(names))]
