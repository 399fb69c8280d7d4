"""Publishes the progress of a running stage on `heimdex.progress.<stage>.<job_id>`."""

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Final

from heimdex.attempt_state import AttemptState
from heimdex_contracts import messages, routes, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import Due
from heimdex_contracts.pipelines import Pipeline
from heimdex_contracts.runtime.jetstream.connection import Broker

#: The delay before the first message. A shorter stage publishes no progress; its hand-over has its start and end.
FIRST_AFTER_SECONDS: Final = 0.05
#: The interval between two messages. The contract is at least every 0.5 s; a busy event loop may be a little late.
EVERY_SECONDS: Final = 0.4
#: The time for which a repeated attempt waits for the server to handle its first message.
MARKED_WITHIN_SECONDS: Final = 1.0
#: The maximum of the estimated fraction of a stage that does not report its progress.
MAX_ESTIMATED: Final = 0.95


class Reporter:
    """Publishes the progress of one attempt. It awaits no acknowledgement: the next message makes up for a lost one.

    floor: the progress already published, at the hand-over or by an earlier attempt, in percent of the job.
    """

    def __init__(
        self, broker: Broker, due: Due, pipeline: Pipeline, state: AttemptState, floor: int, started_at: datetime
    ) -> None:
        self._broker = broker
        self._due = due
        self._pipeline = pipeline
        self._route = routes.route_of(due, pipeline)
        self._state = state
        self._stage = due.stage
        self._attempt = state.attempt
        self._expected_seconds = state.expected_seconds
        self._floor = floor
        self._started_at = started_at
        self._began = time.monotonic()
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to publish progress regularly."""
        self._timer = asyncio.get_running_loop().call_later(FIRST_AFTER_SECONDS, self._tick)

    async def mark_begin(self) -> None:
        """Publish the start of a repeated attempt before it runs, because it may kill this process at once.

        See `isolation_policy`.
        """
        self._send()
        with contextlib.suppress(BrokerUnavailable):
            await self._broker.flush(MARKED_WITHIN_SECONDS)

    def mark_end(self, *, vanished: bool, at: datetime) -> None:
        """Publish that the attempt ended in an error. vanished: its process was lost, so the job stays suspect."""
        self._send(ended=not vanished, at=at)

    def stop(self) -> None:
        """Stop publishing: the attempt is over."""
        if self._timer:
            self._timer.cancel()

    def percent(self) -> int:
        """Return the progress of the whole job in percent. It is never less than the progress already published."""
        fraction = self._state.fraction
        if not self._state.reported and self._expected_seconds > 0:
            fraction = min(MAX_ESTIMATED, (time.monotonic() - self._began) / self._expected_seconds)
        # Two threads of a stage that report at once may leave the smaller fraction.
        self._floor = max(self._floor, routes.progress_along(self._route, self._pipeline, self._stage, fraction))
        return self._floor

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_SECONDS, self._tick)
        self._send()

    def _send(self, *, ended: bool = False, at: datetime | None = None) -> None:
        due = self._due
        self._number += 1
        tick = messages.Progress(
            **spec_of(due, messages.Progress),
            step=due.step,
            run=due.run,
            stage=self._stage,
            attempt=self._attempt,
            progress=self.percent(),
            at=at or max(messages.now(), due.at),
            started_at=self._started_at,
            ended=ended,
        )
        headers = {
            "Nats-Msg-Id": f"{due.job_id}.{due.step}.{self._attempt}.{self._number}",
            "traceparent": tracing.child(due.trace),
        }
        subject = subjects.progress_subject(self._stage, due.job_id)
        with contextlib.suppress(BrokerUnavailable):  # progress sent after the reconnection would be out of date
            self._broker.send(subject, messages.encode(tick), headers=headers)
