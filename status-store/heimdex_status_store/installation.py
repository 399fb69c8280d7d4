"""One installation a NATS account: a status store refuses a stream that another installation has marked.

Of two databases that record from one stream, each has half of the events. So a status store begins only once the id in
its database is the stream's and no living status store works for another database; it looks again while it runs.
"""

import asyncio
import contextlib
from typing import Any, Final

import asyncpg
import msgspec

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, CannotServe
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import STREAM_NOT_FOUND, Broker, JetStreamError
from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store.database import OUTAGE, Database

#: How often a running store compares the two.
LOOK_SECONDS: Final = 5.0
#: While they do not agree. Also while NATS or Postgres is away: they are then compared as soon as they are back.
LOOK_AGAIN_SECONDS: Final = 1.0
#: How long two ids must be different before they are: on a cluster, what was just written is not everywhere yet.
CERTAIN_SECONDS: Final = 1.0
#: How long a living status store may name another database: whether its own was emptied, or the mark was changed, it
#: knows after LOOK_SECONDS.
PATIENCE_SECONDS: Final = 3 * LOOK_SECONDS
#: How long a database that was refused must see no other one's status stores before it adopts the stream's id: they may
#: just be restarted.
QUIET_SECONDS: Final = 60.0
#: How often status stores that are there and do not answer are asked before the stream's id is adopted.
TRIES: Final = 3
#: Of Postgres, to be asked for a row.
TIMEOUT_SECONDS: Final = 5.0

OWN: Final = """
SELECT view.id, view.database, view.id IS NULL AND refused_at IS NOT NULL FROM job_installation AS view, installation
"""
#: Where somebody removed the row.
MAKE: Final = "INSERT INTO installation DEFAULT VALUES ON CONFLICT DO NOTHING"
#: The first of several stores names it, with the stream's id or a new one.
NAME: Final = """
UPDATE installation SET id = coalesce(id, $1, gen_random_uuid()::text), refused_at = NULL RETURNING id
"""
REFUSED: Final = "UPDATE installation SET refused_at = now() WHERE id IS NULL"
RENAME: Final = "UPDATE installation SET id = gen_random_uuid()::text, refused_at = NULL RETURNING id"

TAKE_OVER: Final = "run `heimdex-status-store --take-over` once to make the streams this database's"


class Own(msgspec.Struct, frozen=True):
    """What this database says: the installation's id, where it knows one, and the database's own.

    refused: it has no id, and was refused once.
    """

    installation: str | None
    database: str
    refused: bool


class Obstacle(msgspec.Struct, frozen=True):
    """Why this store may not work with this stream; final when it has been there for so many seconds."""

    sentence: str
    patience_seconds: float


class Installation:
    """Of one status store."""

    def __init__(self, broker: Broker, database: Database, log: Logger) -> None:
        #: While they do not agree: why.
        self.problem: str | None = None
        self._broker = broker
        self._database = database
        self._log = log
        self._own: Own | None = None
        self._look_now = asyncio.Event()
        self._agreed = asyncio.Event()
        #: Since when no other database's status store has been seen; event-loop time.
        self._alone_since: float | None = None
        #: Why the mark could not be written; said once.
        self._said = ""

    def told(self) -> dict[str, str]:
        """What this store says of itself in `$SRV.INFO`."""
        if self._own is None:
            return {}
        told = {installations.DATABASE: self._own.database}
        if self._own.installation is not None:
            told[installations.INSTALLATION] = self._own.installation
        return told

    async def settle(self) -> None:
        """Before the store begins: return once the database and the stream are of one installation.

        Waits for NATS and Postgres. Raises CannotServe when they are of two.
        """
        await self._agree()
        own = self._own
        self._log.info(
            "installation",
            message="the streams and the database are of this installation",
            installation=own and own.installation,
            database=own and own.database,
        )

    async def run(self) -> None:
        """Keep it so until cancelled: the mark is written again where it is gone. Raises CannotServe as `settle`."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look_now.wait()
            self._look_now.clear()
            await self._agree()

    def on_change(self, streams: frozenset[str]) -> None:
        """Look now: these were changed, or made again."""
        if subjects.JOBS in streams:
            self._look_now.set()

    async def after_reconnection(self) -> None:
        """Return once the streams may be taken from: at once where their mark is ours, or gone."""
        self._look_now.set()
        try:
            mark = await installations.mark(self._broker)
        except (BrokerUnavailable, JetStreamError):
            return  # the look that follows asks for longer
        if mark is not None and (self._own is None or mark != self._own.installation):
            self._agreed.clear()
            self._look_now.set()
            await self._agreed.wait()

    async def take_over(self) -> str:
        """Make the stream this database's; returns what was done, a sentence.

        Raises one of OUTAGE, BrokerUnavailable or JetStreamError where it could not be done.
        """
        own = await self._database.run(_own, TIMEOUT_SECONDS)
        try:
            mark = await self._mark()
        except JetStreamError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            return "There are no streams yet: the first status store to start makes them this database's."
        wanted = own.installation
        if wanted is None or (wanted == mark and await self._others(own)):
            # A copy of the database has the same id; what tells them apart from now on is a new one.
            wanted = await self._name(RENAME)
        if wanted == mark:
            return f"The streams are this database's already: both are of installation {wanted}."
        await self._write(wanted, mark)
        if await self._mark() != wanted:
            raise BrokerUnavailable("a status store marked them at the same moment")
        before = f"before, they were installation {mark}'s, whose status stores end now" if mark else "they had no mark"
        return f"The streams are installation {wanted}'s now, as this database is; {before}."

    async def _agree(self) -> None:
        """Look until they agree. Raises CannotServe for an obstacle that stays."""
        loop = asyncio.get_running_loop()
        since, patience = loop.time(), 0.0
        while True:
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
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _remember_refusal(self) -> None:
        if self._own is not None and self._own.installation is None:
            with contextlib.suppress(*OUTAGE, asyncpg.PostgresError):
                await self._database.run(lambda connection: connection.execute(REFUSED), TIMEOUT_SECONDS)

    async def _look(self) -> Obstacle | None:
        mark, known = await self._mark(), self._own
        try:
            own = self._own = await self._database.run(_own, TIMEOUT_SECONDS)
        except OUTAGE:
            if mark is not None and known is not None and known.installation not in {None, mark}:
                return _two(mark, known)
            raise
        if own.installation is not None and mark is not None and own.installation != mark:
            return _two(mark, own)
        if (own.installation is None or not self._agreed.is_set()) and (others := await self._others(own)):
            self._alone_since = None
            return _other(mark, own, others[0])
        if own.refused and mark is not None and not self._alone_for(QUIET_SECONDS):
            return _perhaps(mark, own)
        if own.installation is None:
            own = self._own = msgspec.structs.replace(own, installation=await self._name(NAME, mark))
            if mark is not None and own.installation != mark:
                return _two(mark, own)  # another store was faster, and has seen another mark
            if mark is not None:
                self._log.warning(
                    "installation_adopted",
                    message="the database was new, or emptied: it is of the stream's installation from now on",
                    installation=mark,
                    database=own.database,
                )
        if mark is None and own.installation is not None:
            await self._mark_it(own.installation)
        return None

    def _alone_for(self, seconds: float) -> bool:
        now = asyncio.get_running_loop().time()
        if self._alone_since is None:
            self._alone_since = now
            self._log.info(
                "installation_waiting",
                message="this database was refused before: it waits whether the other one's status stores come back",
                seconds=seconds,
            )
        return now - self._alone_since >= seconds

    async def _others(self, own: Own) -> list[installations.StatusStore]:
        """The living status stores of other databases."""
        for _ in range(TRIES if own.installation is None else 1):
            found = await installations.living(self._broker)
            if found is not None:
                return [store for store in found if store.database not in {None, own.database}]
        return []

    async def _name(self, statement: str, *arguments: Any) -> str:
        named: str = await self._database.run(
            lambda connection: connection.fetchval(statement, *arguments), TIMEOUT_SECONDS
        )
        return named

    async def _mark(self) -> str | None:
        return installations.mark_of((await self._broker.api(f"STREAM.INFO.{subjects.JOBS}"))["config"])

    async def _mark_it(self, installation: str) -> None:
        """A stream that takes no mark now (a full disk) must not stop the store: the next look tries again."""
        try:
            await self._write(installation, None)
        except (BrokerUnavailable, JetStreamError) as error:
            if self._said != str(error):
                self._said = str(error)
                self._log.warning(
                    "stream_not_marked",
                    message="the stream could not be marked as this installation's: it is tried again",
                    installation=installation,
                    error=str(error),
                )
        else:
            self._said = ""

    async def _write(self, installation: str, before: str | None) -> None:
        """Mark the stream, unless it has another mark than `before` by now: then the next look says so."""
        # The configuration as it is at this moment: what it says of everything else is the topology's.
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


def _two(mark: str, own: Own) -> Obstacle:
    return Obstacle(
        f"The streams of this NATS account belong to installation {mark}, and this database to installation "
        f"{own.installation}: {installations.ONE_EACH}, or {TAKE_OVER}.",
        CERTAIN_SECONDS,
    )


def _other(mark: str | None, own: Own, other: installations.StatusStore) -> Obstacle:
    whose = other.installation or mark or "not known yet"
    return Obstacle(
        f"A status store of another database ({other.database}, of installation {whose}) records from the streams of "
        f"this NATS account, so that this one ({own.database}, of installation {own.installation or 'not known yet'}) "
        f"would get a part of the events only: {installations.ONE_EACH}, or stop that status store and {TAKE_OVER}.",
        PATIENCE_SECONDS,
    )


def _perhaps(mark: str, own: Own) -> Obstacle:
    return Obstacle(
        f"The streams of this NATS account belong to installation {mark}, and this database ({own.database}) to none.",
        float("inf"),
    )


async def _own(connection: asyncpg.Connection) -> Own:
    row = await connection.fetchrow(OWN)
    if row is None:
        await connection.execute(MAKE)
        row = await connection.fetchrow(OWN)
    return Own(*row)
