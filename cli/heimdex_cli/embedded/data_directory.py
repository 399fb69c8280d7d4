"""The data folder of an embedded system (`.heimdex/`): one owner at a time, a record of the owner's processes, and
the secret that signs callbacks.

system.py locks it before anything else, and ends what an earlier owner left running.
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
    """A folder that is ours from `lock` to `unlock`; the kernel unlocks it when we die."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.secret_path = self.path / "callback-secret"
        self._record_path = self.path / "processes.json"
        self._lock: TextIOWrapper | None = None

    def lock(self) -> None:
        """Raises Unusable when another process has it, or when the folder cannot be made."""
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
                f"The system is running already on the data in {self.path} (process {owner or 'unknown'}): "
                "end that one first, or start this one in another folder."
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def unlock(self) -> None:
        """Let the next one have it. Nothing happens when it is not locked."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def record(self, processes: Iterable[tuple[str, ChildRecord]]) -> None:
        """Remember which processes run now, by name, for `end_leftovers` of a later owner."""
        text = json.dumps([{"name": name, **asdict(child)} for name, child in processes], indent=1)
        unfinished = self._record_path.with_suffix(".unfinished")
        unfinished.write_text(text)
        unfinished.replace(self._record_path)

    def callback_secret(self) -> str:
        """The secret for HEIMDEX_CALLBACK_SECRET: made the first time, and kept for this user's eyes alone."""
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
        """End the recorded processes that still run: their owner was killed, and its watchdog with it.

        Returns their names. To be called by the owner, before it starts anything.
        """
        try:
            record = json.loads(self._record_path.read_text())
            names = {
                ChildRecord(**{key: value for key, value in each.items() if key != "name"}): each["name"]
                for each in record
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return []  # no record, or one that was never finished
        return [names[child] for child in end(list(names))]
