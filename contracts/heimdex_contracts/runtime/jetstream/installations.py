"""Whose streams these are: the mark on HEIMDEX_JOBS, and what the living status stores say of themselves.

An installation is one database and the services around it. Two of them on one NATS account would split each other's
events, so HEIMDEX_JOBS carries the id of the one that it belongs to, in its metadata. Status stores alone write it.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import nats.errors

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import status_of
from heimdex_contracts.runtime.jetstream.connection import STREAM_NOT_FOUND, Broker, JetStreamError
from heimdex_contracts.runtime.logs import Logger

#: Key of the installation's id, in the metadata of HEIMDEX_JOBS and of a status store's `$SRV.INFO`.
INSTALLATION: Final = "heimdex-installation"
#: Key of the database's own id, in the metadata of a status store's `$SRV.INFO`.
DATABASE: Final = "heimdex-database"
#: Whom to ask for it.
STATUS_STORES: Final = "$SRV.INFO.heimdex-status-store"
#: How long status stores have for their answers.
ANSWER_SECONDS: Final = 1.0
#: How often a process looks whether two installations are mixed, and when it looks again at what it found.
LOOK_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 6.0

ONE_EACH: Final = "give each installation a NATS account of its own"


class StatusStore(msgspec.Struct, frozen=True):
    """What a living one says; None: it does not know yet, or is of a version that knows no installations."""

    installation: str | None
    database: str | None


class _Info(msgspec.Struct):
    metadata: dict[str, str] | None = None


def mark_of(config: Mapping[str, Any]) -> str | None:
    """The installation that a stream of this configuration belongs to; None where it has no mark."""
    return (config.get("metadata") or {}).get(INSTALLATION) or None


async def mark(broker: Broker) -> str | None:
    """The mark of HEIMDEX_JOBS; None where it has none, or is not there. Raises BrokerUnavailable or JetStreamError."""
    try:
        info = await broker.api(f"STREAM.INFO.{subjects.JOBS}")
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return None
        raise
    return mark_of(info["config"])


async def living(broker: Broker, until_database: str | None = None) -> list[StatusStore] | None:
    """What the living status stores of this NATS account say, this process's own among them.

    Takes ANSWER_SECONDS, or no time where there are none, or one of `until_database` has answered. None: there are
    some, and none of them answered. Raises BrokerUnavailable.
    """
    if not broker.connected:
        raise BrokerUnavailable("not connected to NATS")
    reconnections = broker.nc.stats["reconnects"]
    found: list[StatusStore] = []
    nobody, enough = False, asyncio.Event()

    def on_answer(_: bytes, __: bytes, data: bytes, block: bytes) -> None:
        nonlocal nobody
        if status_of(block)[0] == "503":
            nobody = True
            enough.set()
            return
        found.append(_said_by(data))
        if until_database is not None and found[-1].database == until_database:
            enough.set()

    inbox = broker.nc.new_inbox()
    try:
        listening = await broker.nc.direct_subscribe(inbox, on_answer)
        try:
            broker.send(STATUS_STORES, b"", inbox, linger=0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await enough.wait()
        finally:
            await broker.nc.direct_unsubscribe(listening, ANSWER_SECONDS)
    except (nats.errors.Error, ConnectionError, TimeoutError) as error:
        raise BrokerUnavailable(f"the status stores could not be asked: {error or type(error).__name__}") from error
    if broker.nc.stats["reconnects"] != reconnections:
        raise BrokerUnavailable("the connection was lost while the status stores were asked")
    return found if found or nobody else None


def _said_by(answer: bytes) -> StatusStore:
    try:
        metadata = msgspec.json.decode(answer, type=_Info).metadata or {}
    except msgspec.DecodeError:
        metadata = {}
    return StatusStore(metadata.get(INSTALLATION) or None, metadata.get(DATABASE) or None)


class Watch:
    """For a process without a database: says so when it reaches the status stores of two installations."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self._broker = broker
        self._log = log
        self._said: tuple[list[str], list[str]] | None = None

    async def run(self) -> None:
        """Look until cancelled. What is seen twice is said once: a status store needs some seconds for a change."""
        seen: tuple[list[str], list[str]] | None = None
        while True:
            before, seen = seen, await self._mixed()
            if seen is not None and seen == before and seen != self._said:
                self._log.error(
                    "installations_mixed",
                    message="Two installations share this NATS account, and split each other's events: "
                    f"{ONE_EACH}, or stop the status stores of one of them.",
                    installations=seen[0],
                    databases=seen[1],
                )
                self._said = seen
            elif seen is None:
                self._said = None
            await asyncio.sleep(LOOK_SECONDS if seen == self._said else AGAIN_SECONDS)

    async def _mixed(self) -> tuple[list[str], list[str]] | None:
        """The installations and databases that are in sight, where they are more than one."""
        try:
            whose, stores = await mark(self._broker), await living(self._broker)
        except (BrokerUnavailable, JetStreamError):
            return None
        installations = {whose, *(store.installation for store in stores or ())} - {None}
        databases = {store.database for store in stores or ()} - {None}
        if len(installations) <= 1 and len(databases) <= 1:
            return None
        return sorted(map(str, installations)), sorted(map(str, databases))
