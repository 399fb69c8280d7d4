"""Determines which installation owns the streams, from the mark on HEIMDEX_JOBS and from the running status stores.

An installation is one database and its services. Two installations on one NATS account would each consume a part of the
other's events. The metadata of HEIMDEX_JOBS therefore contains the id of its installation, the mark. Only status stores
write it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import nats.errors

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.backoff import set_within
from heimdex_contracts.runtime.jetstream.client import status_of
from heimdex_contracts.runtime.jetstream.connection import STREAM_NOT_FOUND, Broker, JetStreamError
from heimdex_contracts.runtime.logs import Logger

#: Key of the installation's id, in the metadata of HEIMDEX_JOBS and of a status store's `$SRV.INFO`.
INSTALLATION: Final = "heimdex-installation"
#: Key of the database's own id, in the metadata of a status store's `$SRV.INFO`.
DATABASE: Final = "heimdex-database"
#: The subject on which all status stores answer with their info.
STATUS_STORES: Final = "$SRV.INFO.heimdex-status-store"
#: The time that status stores have to answer.
ANSWER_SECONDS: Final = 1.0
#: The interval at which a process checks whether two installations share the account.
CHECK_SECONDS: Final = 30.0
#: The delay before a finding is confirmed by a second check.
AGAIN_SECONDS: Final = 6.0

ONE_EACH: Final = "give each installation a NATS account of its own"


class StatusStore(msgspec.Struct, frozen=True):
    """The ids that a running status store reports.

    None: the store does not know the id yet, or its version has no installations.
    """

    installation: str | None
    database: str | None


class _Info(msgspec.Struct):
    metadata: dict[str, str] | None = None


def mark_of(config: Mapping[str, Any]) -> str | None:
    """Return the installation id in a stream's configuration; None if the stream has no mark."""
    return (config.get("metadata") or {}).get(INSTALLATION) or None


async def mark(broker: Broker) -> str | None:
    """Return the mark of HEIMDEX_JOBS; None if the stream has none or does not exist.

    Raises BrokerUnavailable or JetStreamError.
    """
    try:
        info = await broker.api(f"STREAM.INFO.{subjects.JOBS}")
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return None
        raise
    return mark_of(info["config"])


async def living(broker: Broker, until_database: str | None = None) -> list[StatusStore] | None:
    """Return the info of all running status stores on this NATS account, including this process if it is one.

    Waits ANSWER_SECONDS. Returns earlier if no status store is running, or once one of the database `until_database`
    has answered. Returns None if status stores are running but none answered in time. Raises BrokerUnavailable.
    """
    if not broker.connected:
        raise BrokerUnavailable("not connected to NATS")
    reconnections = broker.nc.stats["reconnects"]
    stores: list[StatusStore] = []
    no_responders, done = False, asyncio.Event()

    def on_answer(_: bytes, __: bytes, data: bytes, block: bytes) -> None:
        nonlocal no_responders
        if status_of(block)[0] == "503":
            no_responders = True
            done.set()
            return
        stores.append(_status_store(data))
        if until_database is not None and stores[-1].database == until_database:
            done.set()

    inbox = broker.nc.new_inbox()
    try:
        subscription = await broker.nc.direct_subscribe(inbox, on_answer)
        try:
            broker.send(STATUS_STORES, b"", inbox, linger=0)
            await set_within(done, ANSWER_SECONDS)
        finally:
            await broker.nc.direct_unsubscribe(subscription, ANSWER_SECONDS)
    except (nats.errors.Error, ConnectionError, TimeoutError) as error:
        raise BrokerUnavailable(f"cannot query the status stores: {error or type(error).__name__}") from error
    if broker.nc.stats["reconnects"] != reconnections:
        raise BrokerUnavailable("lost the NATS connection while querying the status stores")
    return stores if stores or no_responders else None


def _status_store(answer: bytes) -> StatusStore:
    try:
        metadata = msgspec.json.decode(answer, type=_Info).metadata or {}
    except msgspec.DecodeError:
        metadata = {}
    return StatusStore(metadata.get(INSTALLATION) or None, metadata.get(DATABASE) or None)


class Watch:
    """Logs an error when two installations share the NATS account. For processes without a database.

    again_seconds: as AGAIN_SECONDS.
    """

    def __init__(self, broker: Broker, log: Logger, again_seconds: float = AGAIN_SECONDS) -> None:
        self._again_seconds = again_seconds
        self._broker = broker
        self._log = log
        self._logged: tuple[list[str], list[str]] | None = None

    async def run(self) -> None:
        """Check until cancelled.

        A finding is logged once, after a second check has confirmed it: a status store needs some seconds to report a
        change.
        """
        seen: tuple[list[str], list[str]] | None = None
        while True:
            before, seen = seen, await self._mixed()
            if seen is not None and seen == before and seen != self._logged:
                self._log.error(
                    "installations_mixed",
                    message="Two installations share this NATS account, and each misses a part of its events: "
                    f"{ONE_EACH}, or stop the status stores of one of them.",
                    installations=seen[0],
                    databases=seen[1],
                )
                self._logged = seen
            elif seen is None:
                self._logged = None
            await asyncio.sleep(CHECK_SECONDS if seen == self._logged else self._again_seconds)

    async def _mixed(self) -> tuple[list[str], list[str]] | None:
        """Return the installations and databases on this account if there is more than one of either, else None."""
        try:
            owner, stores = await mark(self._broker), await living(self._broker)
        except (BrokerUnavailable, JetStreamError):
            return None
        installations = {owner, *(store.installation for store in stores or ())} - {None}
        databases = {store.database for store in stores or ()} - {None}
        if len(installations) <= 1 and len(databases) <= 1:
            return None
        return sorted(map(str, installations)), sorted(map(str, databases))
