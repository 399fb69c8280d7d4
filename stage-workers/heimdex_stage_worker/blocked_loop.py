"""Watches the worker's event loop from a thread, and holds its leases while code of a stage blocks it.

An async function that computes, or calls a blocking function, stops the loop, which renews the leases of all jobs that
the worker holds. The thread then renews them through a connection of its own, and logs where the loop is. It gives up
after a while: the time-outs and cancels of all jobs run on the loop, so a worker that is blocked for good must not keep
them. The thread cannot help while native code holds the interpreter lock.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from typing import Any, Final, NoReturn

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime import logs
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.delivery import Holder, StandIn
from heimdex_contracts.runtime.jetstream.leases import TIMES_PER_ACK_WAIT
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.process import EXIT_BROKEN
from heimdex_contracts.runtime.settings import Settings
from heimdex_stage_worker.execution import attempt, failures, guarded_tasks

#: The first time at which a blocked loop is logged; each further time is twice as late.
LOG_SECONDS: Final = 5.0
#: The maximum interval at which the loop is asked whether it runs.
ASK_SECONDS: Final = 1.0
#: The number of times that the loop is asked within an ack wait. When it has not answered twice, at least half of the
#: ack wait is left to connect.
ASK_TIMES_PER_ACK_WAIT: Final = 8


class BlockedLoop:
    """Watches the event loop in which it is created. name: the name of its connection to NATS."""

    def __init__(self, settings: Settings, holder: Holder, name: str, log: Logger) -> None:
        self._settings = settings
        self._holder = holder
        self._name = name
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._interval = min(ASK_SECONDS, settings.ack_wait_seconds / ASK_TIMES_PER_ACK_WAIT)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-blocked-loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            answered = threading.Event()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                return  # the loop is closed
            if not self._answers(answered):
                try:
                    asyncio.run(self._stand_in(answered))
                except Exception:
                    self._log.exception("blocked_loop_broken", message="unexpected error while the loop was blocked")

    def _answers(self, answered: threading.Event) -> bool:
        asked_at = time.monotonic()
        if answered.wait(self._interval):
            return True
        # After the whole process was suspended, the loop has had no time to answer.
        return time.monotonic() - asked_at > 2 * self._interval and answered.wait(self._interval)

    async def _stand_in(self, answered: threading.Event) -> None:
        """Renew the leases until the loop answers. Ends the process when that takes too long."""
        blocked = self._interval
        log_at = min(LOG_SECONDS, self._settings.blocked_seconds)
        renewing: asyncio.Task[None] | None = None
        try:
            while not answered.is_set():
                if renewing is not None and renewing.done():
                    self._log.error(
                        "blocked_loop_broken", message="cannot renew the leases", exc_info=renewing.exception()
                    )
                    renewing = None
                if renewing is None and self._holder.held:
                    renewing = asyncio.create_task(self._renew(answered))
                asked_at = time.monotonic()
                await asyncio.sleep(self._interval)
                # Not the time that has passed: while the whole process is suspended, nothing is blocked.
                blocked += min(time.monotonic() - asked_at, 2 * self._interval)
                if blocked >= self._settings.blocked_seconds and not answered.is_set():
                    self._give_up(blocked)
                if blocked >= log_at and not answered.is_set():
                    log_at *= 2
                    self._log.warning(
                        "loop_blocked",
                        message="code of a stage blocks the event loop: until it ends, the worker only renews leases; "
                        "use a blocking function or asyncio.to_thread",
                        blocked_seconds=round(blocked, 1),
                        **self._where(),
                    )
        finally:
            if renewing is not None:
                renewing.cancel()
                await asyncio.wait({renewing})
        if blocked >= LOG_SECONDS:
            self._log.info("loop_released", message="the event loop runs again", blocked_seconds=round(blocked, 1))

    async def _renew(self, answered: threading.Event) -> None:
        broker = Broker(self._settings, f"{self._name}-blocked-loop", self._log.bind(connection="blocked-loop"))
        try:
            await broker.connect()
            stand_in = StandIn(self._holder, broker)
            while True:
                delay = self._settings.ack_wait_seconds / TIMES_PER_ACK_WAIT
                try:
                    await stand_in.renew_all(lambda: not answered.is_set())
                except (BrokerUnavailable, JetStreamError):
                    delay = self._interval
                await asyncio.sleep(delay)
        finally:
            with contextlib.suppress(Exception):
                await broker.close()

    def _give_up(self, blocked: float) -> NoReturn:
        try:
            self._log.error(
                "loop_blocked_too_long",
                message="code of a stage blocks the event loop for too long: the worker exits, so that its jobs run "
                "elsewhere; use a blocking function or asyncio.to_thread",
                blocked_seconds=round(blocked, 1),
                held=len(self._holder.held),
                **self._where(),
            )
            logs.flush()
        finally:
            os._exit(EXIT_BROKEN)  # whatever keeps the log from being written: the leases are renewed no longer

    def _where(self) -> dict[str, Any]:
        """Return where the loop is, of an attempt only its own frames, and which attempt it is."""
        for frame, _ in traceback.walk_stack(sys._current_frames().get(self._loop_thread)):
            if frame.f_code.co_filename in {attempt.__file__, guarded_tasks.__file__}:
                caller = frame.f_locals.get("self")
                state = caller.state if isinstance(caller, attempt.Attempt | guarded_tasks.GuardedCoroutine) else None
                return {
                    "stack": failures.stack_of_thread(self._loop_thread, frame.f_code.co_filename),
                    **({"job_id": state.job_id, "attempt": state.attempt} if state else {}),
                }
        return {"stack": failures.stack_of_thread(self._loop_thread)}
