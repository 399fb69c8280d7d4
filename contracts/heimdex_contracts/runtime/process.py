"""The life of a service process: settings or exit code 2, JSON logs, SIGTERM, exit code 0.

A service is a coroutine function that takes a `Process`, starts what it needs, awaits `process.stopping`, and hands
back or finishes what it holds before it returns.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from heimdex_contracts.errors import CannotServe, SettingsError
from heimdex_contracts.runtime import logs
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.settings import Settings

EXIT_UNUSABLE_SETTINGS = 2
EXIT_CANNOT_SERVE = 2
#: Objects made between two looks for cyclic garbage. Of what a job is made of next to nothing is cyclic, and Python's
#: own threshold of 700 costs a process 5 % of its time.
GC_THRESHOLDS = (20_000, 20, 20)
EXIT_BROKEN = 1


@dataclass
class Process:
    """What every service process has. `stopping` is set by SIGTERM or SIGINT."""

    settings: Settings
    name: str
    log: Logger
    broker: Broker
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    #: Each must be true for the process to count as healthy.
    health: list[Callable[[], bool]] = field(default_factory=list)
    #: What the process leaves with once its service has returned.
    exit_code: int = 0

    def stop_by(self) -> float:
        """Event-loop time by which a stopping process must have ended, counted from this call."""
        return asyncio.get_running_loop().time() + self.settings.shutdown_grace_seconds

    async def connect(self) -> bool:
        """Wait for NATS; False when told to stop meanwhile."""
        return await self.unless_stopped(self.broker.connect())

    async def unless_stopped(self, work: Awaitable[object]) -> bool:
        """Run `work`; True when it is done, False when the process was told to stop first (then it is cancelled)."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            return False
        task.result()
        return True


def run(name: str, read_settings: Callable[[], Settings], service: Callable[[Process], Awaitable[None]]) -> None:
    """Run the service until it is told to stop, then leave the process with its exit code.

    0: stopped as told. 2: a setting cannot be used, or the service raised CannotServe (one line on stderr, the latter
    as a log entry). 1: NATS was given up, a defect, or the service's own wish (`Process.exit_code`).
    """
    try:
        settings = read_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_UNUSABLE_SETTINGS) from None
    log = logs.configure(settings.log_level, name)
    gc.collect()
    gc.freeze()  # what was imported stays; it need not be looked at again
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        code = uvloop.run(_live(settings, name, log, service))
    except CannotServe as error:
        log.error("cannot_serve", message=str(error))
        code = EXIT_CANNOT_SERVE
    except Exception:
        log.exception("defect", message="the process ends because of a defect")
        code = EXIT_BROKEN
    sys.stderr.flush()
    # A stage's blocking function may still be running in a thread; its job was handed back, so nobody waits for it.
    os._exit(code)


async def _live(settings: Settings, name: str, log: Logger, service: Callable[[Process], Awaitable[None]]) -> int:
    broker = Broker(settings, name, log)
    process = Process(settings, name, log, broker)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    log.info("starting", message="starting", pid=os.getpid())
    beat = asyncio.create_task(_touch_health_file(process))
    work = asyncio.ensure_future(service(process))
    lost = asyncio.ensure_future(broker.closed.wait())
    try:
        await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not process.stopping.is_set():
            log.error("nats_closed", message="the NATS client gave up: ending, to be started anew")
            work.cancel()
            return EXIT_BROKEN
        await work
    finally:
        beat.cancel()
        lost.cancel()
        await broker.close()
    log.info("stopped", message="stopped")
    return process.exit_code


async def _touch_health_file(process: Process) -> None:
    if not process.settings.health_file:
        return
    path = Path(process.settings.health_file)
    while True:
        if process.broker.connected and all(check() for check in process.health):
            try:
                path.touch()  # noqa: ASYNC240  # on a file system in memory, or on a local one
            except OSError as error:
                process.log.warning(
                    "health_file_unwritable",
                    message="the health file cannot be written",
                    path=str(path),
                    error=str(error),
                )
        await asyncio.sleep(3)
