"""Deletes finished jobs past their retention, in small batches that block no other work."""

import asyncio
from datetime import timedelta
from typing import Final

from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store import queries
from heimdex_status_store.database import OUTAGE, Database

#: Seconds between two rounds of pruning.
EVERY_SECONDS: Final = 600.0
#: Jobs deleted in one transaction.
BATCH: Final = 500
#: Delay between two batches.
PAUSE_SECONDS: Final = 0.2


async def prune(database: Database, retention_days: float, log: Logger) -> None:
    """Prune until cancelled. `retention_days` 0: keep all jobs, and return at once."""
    if retention_days <= 0:
        return
    retention = timedelta(days=retention_days)
    while True:
        removed = 0
        try:
            while count := await database.run(lambda connection: queries.prune(connection, retention, BATCH)):
                removed += count
                await asyncio.sleep(PAUSE_SECONDS)
        except OUTAGE:
            pass  # the next round continues
        except Exception:
            log.exception("pruning_broken", message="pruning failed with a bug; the next round tries again")
        if removed:
            log.info("jobs_pruned", count=removed, retention_days=retention_days)
        await asyncio.sleep(EVERY_SECONDS)
