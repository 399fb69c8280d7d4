"""Tells how far a running stage is, on `heimdex.progress.<stage>.<job_id>`, while it runs."""

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Final

from heimdex_contracts import messages, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import Due
from heimdex_contracts.pipelines import Pipeline
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_stage_worker.context import StageContext

#: A stage that ends sooner says nothing but its hand-over, which tells when it began and ended.
FIRST_AFTER_SECONDS: Final = 0.05
#: The contract is at least every 0.5 s; a busy event loop may be late by some.
EVERY_SECONDS: Final = 0.4
#: How long a repeated attempt waits for the server to know of it.
MARKED_WITHIN_SECONDS: Final = 1.0
#: How far a stage that reports nothing itself is taken to be, at most.
MAX_ESTIMATED: Final = 0.95


class Reporter:
    """One attempt's progress. A tick waits for no answer: the next one makes up for a lost one."""

    def __init__(
        self, broker: Broker, due: Due, pipeline: Pipeline, ctx: StageContext, floor: int, started_at: datetime
    ) -> None:
        self._broker = broker
        self._due = due
        self._pipeline = pipeline
        self._ctx = ctx
        #: What was told already: at the hand-over, or by an attempt before.
        self._floor = floor
        self._started_at = started_at
        self._began = time.monotonic()
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Report from now on."""
        self._timer = asyncio.get_running_loop().call_later(FIRST_AFTER_SECONDS, self._tick)

    async def mark_begin(self) -> None:
        """Report a repeated attempt before it starts, as it may end this process at once: see `isolation_policy`."""
        self._send()
        with contextlib.suppress(BrokerUnavailable):
            await self._broker.flush(MARKED_WITHIN_SECONDS)

    def mark_end(self, *, vanished: bool, at: datetime) -> None:
        """Leave word that an attempt ended in an error, unless it vanished: it then stays suspect."""
        self._send(ended=not vanished, at=at)

    def stop(self) -> None:
        """The attempt is over."""
        if self._timer:
            self._timer.cancel()

    def percent(self) -> int:
        """Of the whole job, as far as this attempt has come; never less than was told already."""
        fraction = self._ctx.fraction
        if not self._ctx.reported and self._ctx.expected_seconds > 0:
            fraction = min(MAX_ESTIMATED, (time.monotonic() - self._began) / self._ctx.expected_seconds)
        return max(self._floor, self._pipeline.progress(self._ctx.stage, fraction))

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_SECONDS, self._tick)
        self._send()

    def _send(self, *, ended: bool = False, at: datetime | None = None) -> None:
        due, ctx = self._due, self._ctx
        self._number += 1
        tick = messages.Progress(
            **spec_of(due, messages.Progress),
            step=due.step,
            run=due.run,
            stage=ctx.stage,
            attempt=ctx.attempt,
            progress=self.percent(),
            at=at or max(messages.now(), due.at),
            started_at=self._started_at,
            ended=ended,
        )
        headers = {
            "Nats-Msg-Id": f"{due.job_id}.{due.step}.{ctx.attempt}.{self._number}",
            "traceparent": tracing.child(due.trace),
        }
        subject = subjects.progress_subject(ctx.stage, due.job_id)
        with contextlib.suppress(BrokerUnavailable):  # a tick that waited for the reconnection would be old news
            self._broker.send(subject, messages.encode(tick), headers=headers)
