"""Ensures one installation for each NATS account: a status store refuses a stream marked by another installation.

If two databases record from one stream, each gets half of the events. So a status store starts only when the id in its
database is that of the stream and no live status store works for another database. It repeats the check while it runs.
"""

import asyncio
import contextlib
from typing import Any, Final

import asyncpg
import msgspec

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, CannotServe
from heimdex_contracts.runtime.backoff import repeat, set_within
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import STREAM_NOT_FOUND, Broker, JetStreamError
from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store.database import OUTAGE, Database

#: Seconds between two checks in a running store.
CHECK_SECONDS: Final = 5.0
#: Seconds between two checks while they do not agree, and while NATS or Postgres is down, so that the check runs soon
#: after the outage.
RECHECK_SECONDS: Final = 1.0
#: How long two ids must differ before the store refuses: on a cluster, a new mark takes a moment to reach every node.
CERTAIN_SECONDS: Final = 1.0
#: How long a live status store may report another database before this store refuses. If its database was emptied or
#: the mark was changed, that store notices it within CHECK_SECONDS.
PATIENCE_SECONDS: Final = 3 * CHECK_SECONDS
#: How long a refused database must see no status store of another database before it adopts the stream's id. The
#: others may only be restarting.
QUIET_SECONDS: Final = 60.0
#: How often status stores that do not answer are queried before the stream's id is adopted.
MAX_QUERIES: Final = 3
#: Time-out of one statement in Postgres.
TIMEOUT_SECONDS: Final = 5.0

IDENTITY: Final = """
SELECT view.id, view.database, view.id IS NULL AND refused_at IS NOT NULL FROM job_installation AS view, installation
"""
#: Recreates the row if it was removed.
RECREATE: Final = "INSERT INTO installation DEFAULT VALUES ON CONFLICT DO NOTHING"
#: Sets the id, to the stream's or to a new one. If several stores do this, the first one wins.
SET_ID: Final = """
UPDATE installation SET id = coalesce(id, $1, gen_random_uuid()::text), refused_at = NULL RETURNING id
"""
REFUSED: Final = "UPDATE installation SET refused_at = now() WHERE id IS NULL"
NEW_ID: Final = "UPDATE installation SET id = gen_random_uuid()::text, refused_at = NULL RETURNING id"

TAKE_OVER: Final = "run `heimdex-status-store --take-over` once to assign the streams to this database"


class Identity(msgspec.Struct, frozen=True):
    """The identity stored in this database: the id of its installation, or None, and the id of the database itself.

    refused: the database has no installation id and was refused before.
    """

    installation: str | None
    database: str
    refused: bool


class Obstacle(msgspec.Struct, frozen=True):
    """The reason why this store must not use this stream.

    patience_seconds: the store refuses after the obstacle has existed for this long.
    """

    sentence: str
    patience_seconds: float


class Installation:
    """Compares the installation of the streams with that of the database, for one status store.

    patience_seconds: as PATIENCE_SECONDS. quiet_seconds: as QUIET_SECONDS.
    """

    def __init__(
        self,
        broker: Broker,
        database: Database,
        log: Logger,
        patience_seconds: float = PATIENCE_SECONDS,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._quiet_seconds = quiet_seconds
        #: A sentence about the mismatch while there is one; otherwise None.
        self.problem: str | None = None
        self._broker = broker
        self._database = database
        self._log = log
        self._own: Identity | None = None
        self._look_now = asyncio.Event()
        self._agreed = asyncio.Event()
        #: Event-loop time since which no status store of another database has been seen.
        self._alone_since: float | None = None
        #: The last logged reason why the mark could not be written; each reason is logged once.
        self._logged_reason = ""

    def metadata(self) -> dict[str, str]:
        """The metadata of this store in `$SRV.INFO`: the ids of its database and its installation."""
        if self._own is None:
            return {}
        metadata = {installations.DATABASE: self._own.database}
        if self._own.installation is not None:
            metadata[installations.INSTALLATION] = self._own.installation
        return metadata

    async def settle(self) -> None:
        """Return when the database and the stream belong to the same installation. Called before the store starts.

        Waits for NATS and Postgres. Raises CannotServe if they belong to two installations.
        """
        await self._agree()
        own = self._own
        self._log.info(
            "installation",
            message="the streams and the database belong to this installation",
            installation=own and own.installation,
            database=own and own.database,
        )

    async def run(self) -> None:
        """Repeat the check until cancelled, and write the mark again if it is missing.

        Raises CannotServe under the same conditions as `settle`.
        """
        while True:
            await set_within(self._look_now, CHECK_SECONDS)
            self._look_now.clear()
            await self._agree()

    def on_change(self, streams: frozenset[str]) -> None:
        """Check now if HEIMDEX_JOBS is among these streams, which were changed or created anew."""
        if subjects.JOBS in streams:
            self._look_now.set()

    async def after_reconnection(self) -> None:
        """Return when the streams may be pulled from again.

        This is at once if their mark is this installation's, or missing. Otherwise it is after the next successful
        check.
        """
        self._look_now.set()
        try:
            mark = await installations.mark(self._broker)
        except (BrokerUnavailable, JetStreamError):
            return  # the check that follows has a longer time-out
        if mark is not None and (self._own is None or mark != self._own.installation):
            self._agreed.clear()
            self._look_now.set()
            await self._agreed.wait()

    async def take_over(self) -> str:
        """Assign the stream to this database. Returns a sentence that describes the result.

        Raises one of OUTAGE, BrokerUnavailable or JetStreamError if that failed.
        """
        own = await self._database.run(_read_identity, TIMEOUT_SECONDS)
        try:
            mark = await self._read_mark()
        except JetStreamError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            return "There are no streams yet: the first status store that starts will create them for this database."
        target = own.installation
        if target is None or (target == mark and await self._other_stores(own)):
            # A copy of the database has the same id; a new id distinguishes the two from now on.
            target = await self._set_id(NEW_ID)
        if target == mark:
            return f"Nothing to do: the streams and this database already belong to installation {target}."
        await self._write(target, mark)
        if await self._read_mark() != target:
            raise BrokerUnavailable("a status store marked them at the same moment")
        before = f"the status stores of their former installation {mark} now stop" if mark else "they had no mark"
        return f"The streams and this database now belong to installation {target}; {before}."

    async def _agree(self) -> None:
        """Check until stream and database agree. Raises CannotServe if an obstacle persists."""
        loop = asyncio.get_running_loop()
        since, patience = loop.time(), 0.0
        async for _ in repeat(RECHECK_SECONDS, RECHECK_SECONDS):
            try:
                obstacle = await self._look()
                self.problem = obstacle.sentence if obstacle else None
                if obstacle is None:
                    self._agreed.set()
                    return
                self._agreed.clear()
                if patience != obstacle.patience_seconds:
                    since, patience = loop.time(), obstacle.patience_seconds
                if loop.time() - since >= patience:
                    await self._remember_refusal()
                    raise CannotServe(obstacle.sentence)
            except (*OUTAGE, asyncpg.PostgresError, BrokerUnavailable, JetStreamError) as error:
                self._log.debug("installation_not_compared_yet", reason=str(error))

    async def _remember_refusal(self) -> None:
        if self._own is not None and self._own.installation is None:
            with contextlib.suppress(*OUTAGE, asyncpg.PostgresError):
                await self._database.run(lambda connection: connection.execute(REFUSED), TIMEOUT_SECONDS)

    async def _look(self) -> Obstacle | None:
        mark, known = await self._read_mark(), self._own
        try:
            own = self._own = await self._database.run(_read_identity, TIMEOUT_SECONDS)
        except OUTAGE:
            if mark is not None and known is not None and known.installation not in {None, mark}:
                return _mismatch(mark, known)
            raise
        if own.installation is not None and mark is not None and own.installation != mark:
            return _mismatch(mark, own)
        if (own.installation is None or not self._agreed.is_set()) and (others := await self._other_stores(own)):
            self._alone_since = None
            return _other_database(mark, own, others[0], self._patience_seconds)
        if own.refused and mark is not None and not self._alone_for(self._quiet_seconds):
            return _adoption_pending(mark, own)
        if own.installation is None:
            own = self._own = msgspec.structs.replace(own, installation=await self._set_id(SET_ID, mark))
            if mark is not None and own.installation != mark:
                return _mismatch(mark, own)  # another store set the id first, and had read another mark
            if mark is not None:
                self._log.warning(
                    "installation_adopted",
                    message="the database was new or emptied: it now belongs to the installation of the streams",
                    installation=mark,
                    database=own.database,
                )
        if mark is None and own.installation is not None:
            await self._mark_stream(own.installation)
        return None

    def _alone_for(self, seconds: float) -> bool:
        now = asyncio.get_running_loop().time()
        if self._alone_since is None:
            self._alone_since = now
            self._log.info(
                "installation_waiting",
                message="this database was refused before: waiting for the other database's status stores to return",
                seconds=seconds,
            )
        return now - self._alone_since >= seconds

    async def _other_stores(self, own: Identity) -> list[installations.StatusStore]:
        """The live status stores of other databases."""
        for _ in range(MAX_QUERIES if own.installation is None else 1):
            stores = await installations.living(self._broker)
            if stores is not None:
                return [store for store in stores if store.database not in {None, own.database}]
        return []

    async def _set_id(self, statement: str, *arguments: Any) -> str:
        installation: str = await self._database.run(
            lambda connection: connection.fetchval(statement, *arguments), TIMEOUT_SECONDS
        )
        return installation

    async def _read_mark(self) -> str | None:
        return installations.mark_of((await self._broker.api(f"STREAM.INFO.{subjects.JOBS}"))["config"])

    async def _mark_stream(self, installation: str) -> None:
        """Mark the stream as this installation's.

        A failure (a full disk, for example) is logged and does not stop the store: the next check tries again.
        """
        try:
            await self._write(installation, None)
        except (BrokerUnavailable, JetStreamError) as error:
            if self._logged_reason != str(error):
                self._logged_reason = str(error)
                self._log.warning(
                    "stream_not_marked",
                    message="the stream could not be marked as this installation's; the next check tries again",
                    installation=installation,
                    error=str(error),
                )
        else:
            self._logged_reason = ""

    async def _write(self, installation: str, before: str | None) -> None:
        """Mark the stream, unless its mark is no longer `before`; the next check then reports the mismatch."""
        # Update the current configuration, because only `topology` may change the rest of it.
        config = (await self._broker.api(f"STREAM.INFO.{subjects.JOBS}"))["config"]
        if installations.mark_of(config) != before:
            return
        metadata = {**(config.get("metadata") or {}), installations.INSTALLATION: installation}
        await self._broker.api(f"STREAM.UPDATE.{subjects.JOBS}", {**config, "metadata": metadata}, timeout=10)
        self._log.info(
            "stream_marked",
            message="marked the stream as this installation's",
            stream=subjects.JOBS,
            installation=installation,
        )


def _mismatch(mark: str, own: Identity) -> Obstacle:
    return Obstacle(
        f"The streams of this NATS account belong to installation {mark}, and this database to installation "
        f"{own.installation}: {installations.ONE_EACH}, or {TAKE_OVER}.",
        CERTAIN_SECONDS,
    )


def _other_database(
    mark: str | None, own: Identity, other: installations.StatusStore, patience_seconds: float
) -> Obstacle:
    their_id = other.installation or mark or "not known yet"
    return Obstacle(
        f"A status store of another database ({other.database}, installation {their_id}) records from the streams of "
        f"this NATS account, so that this one ({own.database}, installation {own.installation or 'not known yet'}) "
        f"would get only a part of the events: {installations.ONE_EACH}, or stop that status store and {TAKE_OVER}.",
        patience_seconds,
    )


def _adoption_pending(mark: str, own: Identity) -> Obstacle:
    return Obstacle(
        f"The streams of this NATS account belong to installation {mark}, and this database ({own.database}) to none.",
        float("inf"),
    )


async def _read_identity(connection: asyncpg.Connection) -> Identity:
    row = await connection.fetchrow(IDENTITY)
    if row is None:
        await connection.execute(RECREATE)
        (row,) = await connection.fetch(IDENTITY)
    return Identity(*row)
