"""Checks that the streams and the database of this gateway belong to the same installation.

A job that is accepted into another installation's stream is recorded in the other database. This gateway would answer
404 for it.
"""

import asyncio
import contextlib
from typing import Final

import msgspec

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.backoff import set_within
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Refused
from heimdex_contracts.runtime.logs import Logger
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable, Installation

#: Seconds between two checks.
CHECK_SECONDS: Final = 10.0
#: Seconds between two checks until the first has succeeded, and while the streams belong to another installation.
RECHECK_SECONDS: Final = 1.0
#: How long a request waits for the first check: as long as for NATS.
FIRST_LOOK_SECONDS: Final = 4.0
#: How long status stores may report another database. They need some seconds to notice that their own was emptied.
PATIENCE_SECONDS: Final = 15.0
UNKNOWN: Final = Installation(None, None)


class InstallationCheck:
    """Compares the installation of the streams with that of the database, for one gateway."""

    def __init__(self, broker: Broker, database: Database, log: Logger) -> None:
        #: A sentence that names both installations, while they differ; otherwise None.
        self.problem: str | None = None
        self._broker = broker
        self._database = database
        self._log = log
        self._own = UNKNOWN
        #: Event-loop time of the last check that found a status store of this database, or no status store at all.
        self._matched_at = float("-inf")
        self._look_now = asyncio.Event()
        self._looked = asyncio.Event()
        # Runs before the other reconnect callbacks, because the check does not need the streams to be verified first.
        broker.on_reconnect.insert(0, self._on_reconnect)

    @property
    def agreed(self) -> bool:
        """Whether the first check is complete and no mismatch is known."""
        return self._looked.is_set() and self.problem is None

    async def check(self) -> None:
        """Check that jobs may be accepted. Called before each acceptance.

        Raises Refused if the streams belong to another installation, BrokerUnavailable if the first check did not
        complete in time because NATS is down.
        """
        if not self._looked.is_set() and not await set_within(self._looked, FIRST_LOOK_SECONDS):
            raise BrokerUnavailable("the installation of the streams could not be checked yet")
        if self.problem is not None:
            raise Refused(self.problem)

    async def first_look(self) -> None:
        """Wait until the installation of the streams is known, and that of the database, unless Postgres is down."""
        await self._looked.wait()

    async def run(self) -> None:
        """Check until cancelled. Start it after NATS is connected."""
        while True:
            try:
                self._report(await self._look())
                self._looked.set()
            except (BrokerUnavailable, JetStreamError) as error:
                self._log.debug("installation_not_compared_yet", reason=str(error))
            except Exception:
                self._log.exception("defect", message="the installation check failed with a bug; it will be repeated")
            await set_within(self._look_now, CHECK_SECONDS if self.agreed else RECHECK_SECONDS)
            self._look_now.clear()

    def on_change(self, streams: frozenset[str]) -> None:
        """Check now if HEIMDEX_JOBS is among these streams, which were changed or created anew."""
        if subjects.JOBS in streams:
            self._look_now.set()

    async def _on_reconnect(self) -> None:
        self._look_now.set()

    async def _look(self) -> str | None:
        """Check once. Returns a sentence about the mismatch, or None.

        Until Postgres has answered for the first time, no mismatch is known. Raises BrokerUnavailable or
        JetStreamError.
        """
        mark = await installations.mark(self._broker)
        with contextlib.suppress(DatabaseUnavailable):
            current = await self._database.installation()
            # A database without the id that it had was emptied. It keeps its installation until its status store
            # gives it another.
            self._own = current if current.id is not None else msgspec.structs.replace(current, id=self._own.id)
        own = self._own
        ours = f"this gateway's database ({own.database or 'empty'}) belongs to {_named(own.id)}"
        if own.id is not None and mark is not None and own.id != mark:
            return _refusal(f"the streams of this NATS account belong to {_named(mark)}, and {ours}")
        if own is UNKNOWN or (mark is None and own.id is None):
            return None
        stores = await installations.living(self._broker, until_database=own.database) or []
        others = [store for store in stores if store.database not in {None, own.database}]
        now = asyncio.get_running_loop().time()
        if len(others) < len(stores) or not others:
            self._matched_at = now
            return None
        other = others[0]
        if own.id is not None and other.installation in {None, own.id} and now - self._matched_at < PATIENCE_SECONDS:
            return None
        return _refusal(
            f"the status store of another database ({other.database}, {_named(other.installation or mark)}) records "
            f"from the streams of this NATS account, and {ours}"
        )

    def _report(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            self._log.error("installations_mixed", message=problem)
        elif problem is None and self.problem is not None:
            self._log.info("installation", message="the streams and the database belong to the same installation again")
        self.problem = problem


def _named(installation: str | None) -> str:
    return f"installation {installation}" if installation else "no installation yet"


def _refusal(reason: str) -> str:
    return f"Jobs are not accepted: {reason}. The operator can {installations.ONE_EACH}."
