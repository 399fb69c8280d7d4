"""Whether the streams that this gateway reaches are of the installation that its database is of.

A job that is accepted into another installation's stream is recorded in that one's database: here it would be a 404.
"""

import asyncio
import contextlib
from typing import Final

import msgspec

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream import installations
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Refused
from heimdex_contracts.runtime.logs import Logger
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable, Installation

LOOK_SECONDS: Final = 10.0
#: While it is not known yet, or they are of two.
LOOK_AGAIN_SECONDS: Final = 1.0
#: How long a request waits for the first look: as long as for NATS.
FIRST_LOOK_SECONDS: Final = 4.0
#: How long status stores may name another database: whether theirs was emptied, they know after some seconds.
PATIENCE_SECONDS: Final = 15.0
UNKNOWN: Final = Installation(None, None)


class InstallationCheck:
    """Of one gateway."""

    def __init__(self, broker: Broker, database: Database, log: Logger) -> None:
        #: While they are of two installations: a sentence that names both.
        self.problem: str | None = None
        self._broker = broker
        self._database = database
        self._log = log
        self._own = UNKNOWN
        #: When no status store but those of this database was last seen to record; event-loop time.
        self._fine_at = float("-inf")
        self._look_now = asyncio.Event()
        self._looked = asyncio.Event()
        # Before the others: the streams need not be made sure of to be looked at.
        broker.on_reconnect.insert(0, self._on_reconnect)

    @property
    def agreed(self) -> bool:
        """Whether the gateway has looked, and nothing is known to be wrong."""
        return self._looked.is_set() and self.problem is None

    async def check(self) -> None:
        """Before a job is accepted. Raises Refused where the streams are another's, BrokerUnavailable without NATS."""
        if not self._looked.is_set():
            try:
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await self._looked.wait()
            except TimeoutError:
                raise BrokerUnavailable("the streams could not be looked at yet") from None
        if self.problem is not None:
            raise Refused(self.problem)

    async def first_look(self) -> None:
        """Return once it is known whose the streams are, as far as Postgres answers."""
        await self._looked.wait()

    async def run(self) -> None:
        """Look until cancelled. To be started once NATS is connected."""
        while True:
            try:
                self._report(await self._look())
                self._looked.set()
            except (BrokerUnavailable, JetStreamError) as error:
                self._log.debug("installation_not_compared_yet", reason=str(error))
            except Exception:
                self._log.exception("defect", message="comparing the installations ended in a defect; it is repeated")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if self.agreed else LOOK_AGAIN_SECONDS):
                    await self._look_now.wait()
            self._look_now.clear()

    def on_change(self, streams: frozenset[str]) -> None:
        """Look now: these were changed, or made again."""
        if subjects.JOBS in streams:
            self._look_now.set()

    async def _on_reconnect(self) -> None:
        self._look_now.set()

    async def _look(self) -> str | None:
        """What is wrong. Nothing is known to be wrong while Postgres has not answered yet."""
        mark = await installations.mark(self._broker)
        with contextlib.suppress(DatabaseUnavailable):
            found = await self._database.installation()
            # One that has no id any more was emptied: it is the same installation's until its status store says else.
            self._own = found if found.id is not None else msgspec.structs.replace(found, id=self._own.id)
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
            self._fine_at = now
            return None
        other = others[0]
        if own.id is not None and other.installation in {None, own.id} and now - self._fine_at < PATIENCE_SECONDS:
            return None
        return _refusal(
            f"the status store of another database ({other.database}, of {_named(other.installation or mark)}) records "
            f"from the streams of this NATS account, and {ours}"
        )

    def _report(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            self._log.error("installations_mixed", message=problem)
        elif problem is None and self.problem is not None:
            self._log.info("installation", message="the streams and the database are of one installation again")
        self.problem = problem


def _named(installation: str | None) -> str:
    return f"installation {installation}" if installation else "no installation yet"


def _refusal(why: str) -> str:
    return f"Jobs are not accepted: {why}. The operator can {installations.ONE_EACH}."
