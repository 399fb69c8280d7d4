"""Runs a service process: reads the settings, configures the logs, handles signals, and sets the exit code.

A service is a coroutine function that takes a `Process`, starts what it needs, awaits `process.stopping`, and hands
back or finishes the work that it holds before it returns.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import uvloop

from heimdex_contracts.errors import CannotServe, SettingsError
from heimdex_contracts.runtime import forks, logs
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.run_to_end import run_to_end
from heimdex_contracts.runtime.settings import Settings

EXIT_UNUSABLE_SETTINGS = 2
EXIT_CANNOT_SERVE = 2
#: Thresholds of Python's cyclic garbage collector. The objects of a job have almost no reference cycles, and Python's
#: default threshold of 700 allocations costs a process 5 % of its time.
GC_THRESHOLDS = (20_000, 20, 20)
EXIT_BROKEN = 1
#: The signals that stop a service in order. SIGHUP: its terminal was closed; none of the services reloads anything.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How long tasks that are left at the end of a service may clean up.
CLEAN_UP_SECONDS: Final = 1.0


@dataclass
class Process:
    """The parts that every service process has. SIGTERM, SIGINT and SIGHUP set `stopping`."""

    settings: Settings
    name: str
    log: Logger
    broker: Broker
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    #: Health checks: the process is healthy while it is ready, is connected to NATS, and all of them return True.
    health: list[Callable[[], bool]] = field(default_factory=list)
    _is_ready: bool = False
    #: The exit code of the process once its service has returned.
    exit_code: int = 0

    def ready(self, log: Logger | None = None, **fields: object) -> None:
        """Log, with these fields, that the service has begun to work. Until then the process is not healthy.

        log: a logger with more context than the process's own.
        """
        self._is_ready = True
        (log or self.log).info("ready", **fields)

    def is_healthy(self) -> bool:
        """Whether the service works and has the connections that it needs."""
        return self._is_ready and self.broker.connected and all(check() for check in self.health)

    def stop_by(self) -> float:
        """Return the event-loop time at which the grace period ends, counted from this call."""
        return asyncio.get_running_loop().time() + self.settings.shutdown_grace_seconds

    async def connect(self) -> bool:
        """Wait for NATS. Returns False when the process received a stop signal first."""
        return await self.unless_stopped(self.broker.connect())

    async def unless_stopped(self, work: Awaitable[object]) -> bool:
        """Run `work`. Returns True when it is done, False when a stop signal came first; then `work` is cancelled.

        Raises what `work` raises.
        """
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


def run(
    name: str,
    read_settings: Callable[[], Settings],
    service: Callable[[Process], Awaitable[None]],
    *,
    capture_output: bool = False,
) -> None:
    """Run the service until a stop signal, then exit the process. Never returns.

    capture_output: see `logs.configure`.

    Exit codes: 0 after a stop signal. 2 for an invalid setting (one line on stderr) or when the service raised
    CannotServe (one log entry on stderr). 1 when the NATS client gave up or the service raised an unexpected error.
    The service may set another one (`Process.exit_code`).
    """
    for number in STOP_SIGNALS:
        # Modules of pipelines and stages may take long to import. Nothing is held yet, so the process need not wait.
        if not _is_ignored(number):
            signal.signal(number, lambda *_: os._exit(0))
    try:
        settings = read_settings()
    except SettingsError as error:
        exit_unusable(error)
    gc.collect()
    gc.freeze()  # imported modules stay alive, so the collector need not scan them again
    # Forks, so it comes after the collector has written to all objects: the child shares their memory.
    log = logs.configure(settings.log_level, name, capture_output=capture_output)
    gc.set_threshold(*GC_THRESHOLDS)
    loop = uvloop.new_event_loop()
    try:
        code = run_to_end(loop, _live(settings, name, log, service), lambda error: _log_refused_exit(log, error))
    except CannotServe as error:
        log.error("cannot_serve", message=str(error))
        code = EXIT_CANNOT_SERVE
    except Exception:
        log.exception("defect", message="unexpected error: the process exits")
        code = EXIT_BROKEN
    _cancel_all_tasks(loop)
    logs.flush()
    # A stage's blocking function may still run in a thread. Its job was handed back, so nothing depends on it.
    os._exit(code)


def exit_unusable(error: SettingsError) -> NoReturn:
    """Print the error to stderr and exit with EXIT_UNUSABLE_SETTINGS, also if an imported module started threads."""
    print(error, file=sys.stderr, flush=True)
    os._exit(EXIT_UNUSABLE_SETTINGS)


def _log_refused_exit(log: Logger, error: BaseException) -> None:
    log.error(
        "exit_refused",
        message="code on the event loop tried to end the process: it goes on; a stage must raise an error instead",
        error=repr(error),
        exc_info=error,
    )


def _cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Let the tasks that are left clean up. Does not wait for threads: one that hangs must not keep the process."""

    async def cancel() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLEAN_UP_SECONDS)

    with contextlib.suppress(BaseException):
        run_to_end(loop, cancel(), lambda _: None)


async def _live(settings: Settings, name: str, log: Logger, service: Callable[[Process], Awaitable[None]]) -> int:
    broker = Broker(settings, name, log)
    process = Process(settings, name, log, broker)
    loop = asyncio.get_running_loop()
    # Handlers of the loop would be lost while `run_to_end` starts it again.
    signals = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not _is_ignored(number)]
    for number in signals:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(process.stopping.set))
    forks.protect(loop, signals, name)
    log.info("starting", message="starting", pid=os.getpid())
    health_file = asyncio.create_task(_touch_health_file(process))
    work = asyncio.ensure_future(service(process))
    nats_closed = asyncio.ensure_future(broker.closed.wait())
    try:
        await asyncio.wait({work, nats_closed}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not process.stopping.is_set():
            log.error("nats_closed", message="the NATS client gave up: the process exits so that it is restarted")
            work.cancel()
            return EXIT_BROKEN
        await work
    finally:
        health_file.cancel()
        nats_closed.cancel()
        await broker.close()
    log.info("stopped", message="stopped")
    return process.exit_code


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN  # as nohup ignores SIGHUP


async def _touch_health_file(process: Process) -> None:
    if not process.settings.health_file:
        return
    path = Path(process.settings.health_file)
    while True:
        if process.is_healthy():
            try:
                path.touch()  # noqa: ASYNC240  # fast: the file is on tmpfs or on a local disk
            except OSError as error:
                process.log.warning(
                    "health_file_unwritable",
                    message="cannot write the health file",
                    path=str(path),
                    error=str(error),
                )
        await asyncio.sleep(3)
