"""Renews the leases of held deliveries several times per ack wait, however long they are held."""

import asyncio
import time
from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.delivery import Holder

TIMES_PER_ACK_WAIT: Final = 4


class Leases:
    """Renews the leases of all deliveries that a process holds."""

    def __init__(self, holder: Holder, ack_wait_seconds: float) -> None:
        self._holder = holder
        self._ack_wait_seconds = ack_wait_seconds
        self._interval_seconds = ack_wait_seconds / TIMES_PER_ACK_WAIT
        self._task: asyncio.Task[None] | None = None
        #: When all leases were renewed last, and the last span without it that was too long, by the monotonic clock.
        self._renewed_at = time.monotonic()
        self._lapse = (self._renewed_at, self._renewed_at)

    def start(self) -> None:
        """Start to renew the leases in a background task."""
        self._task = asyncio.create_task(self._run())

    def renew_all(self) -> None:
        """Renew all leases now. Also called after a reconnection, once the streams have been verified."""
        for delivery in self._holder.held:
            try:
                delivery.renew()
            except BrokerUnavailable:
                return  # renewed after the reconnection
        now = time.monotonic()
        if now - self._renewed_at > self._ack_wait_seconds:
            self._lapse = (self._renewed_at, now)
        self._renewed_at = now

    def lapsed_since(self, at: float) -> bool:
        """Return whether the leases were not renewed for an ack wait since this time: by now, others may hold the jobs.

        This process was frozen, or not connected. at: by the monotonic clock.
        """
        spans = (self._lapse, (self._renewed_at, time.monotonic()))
        return any(end - max(begin, at) > self._ack_wait_seconds for begin, end in spans)

    async def stop(self) -> None:
        """Stop renewing leases."""
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            self.renew_all()
