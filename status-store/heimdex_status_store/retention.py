"""Forgets ended jobs past their retention, in small batches that block nobody."""

import asyncio
from datetime import timedelta
from typing import Final

from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store import queries
from heimdex_status_store.database import OUTAGE, Database

EVERY_SECONDS: Final = 600.0
BATCH: Final = 500
PAUSE_SECONDS: Final = 0.2


async def prune(database: Database, retention_days: float, log: Logger) -> None:
    """Prune until cancelled. `retention_days` 0: keep everything."""
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
            pass  # the next round goes on
        except Exception:
            log.exception("pruning_broken", message="a round of pruning ended in a defect; the next one tries again")
        if removed:
            log.info("jobs_pruned", count=removed, retention_days=retention_days)
        await asyncio.sleep(EVERY_SECONDS)
