"""Job types whose stage forks: `forking` runs it in a thread of the worker, `forking_async` on its event loop.

The type of a job determines how. `pool` and `executor` map over two processes, `terminated` ends a child with SIGTERM,
and `forgetful` forks a child that returns as if it were the stage; `threaded` does so in a thread of an executor.
`orphaned` leaves a child that lives until the test kills it, `steady` forks nothing. Each records that it is done with
that, and then waits until the test opens the gate. `quick` returns at once. `Forking` is the interface for the test.
"""

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from heimdex import Context, Pipeline, Stage
from heimdex_contracts.runtime.forks import EXIT_FORKED

FOLDER = "TEST_FORKING_FOLDER"
STAGES = ("forking", "forking_async")
KINDS = ("pool", "executor", "terminated", "forgetful", "threaded")
#: What a child waits for something that must not happen, or for the test to kill it.
LONG_SECONDS = 60.0

PIPELINES = tuple(
    Pipeline(
        type=f"{stage}_{kind}",
        stages=(Stage(stage, expected_seconds=1, code=f"{__name__}:{stage}"),),
        retry_backoff_seconds=(0.1, 0.1, 0.1) if kind == "orphaned" else (),
    )
    for stage in STAGES
    for kind in (*KINDS, "orphaned", "steady", "quick")
)

_FORK = multiprocessing.get_context("fork")


class Forking:
    """Controls these jobs and reads their attempts. Every service needs `env`: `system.env |= forking.env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("forking")}

    def open_gate(self) -> None:
        """Let every waiting attempt return."""
        (self.folder / "open").touch()

    def forked(self) -> list[tuple[str, int, int]]:
        """Return every attempt that has forked, or need not, as (job id, attempt, pid of its child or 0)."""
        path = self.folder / "forked"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(words[0], int(words[1]), int(words[2])) for words in map(str.split, lines)]


def _record(ctx: Context, child: int = 0) -> None:
    with (Path(os.environ[FOLDER]) / "forked").open("a") as forked:
        forked.write(f"{ctx.job_id} {ctx.attempt} {child}\n")


def _is_open() -> bool:
    return (Path(os.environ[FOLDER]) / "open").exists()


def _absolute(number: int) -> int:
    return abs(number)


def _terminate() -> None:
    child = _FORK.Process(target=time.sleep, args=(LONG_SECONDS,))
    child.start()
    child.terminate()
    child.join(LONG_SECONDS / 4)
    code = child.exitcode
    child.kill()
    if code != -15:
        raise RuntimeError(f"the child did not end by SIGTERM, but with {code}")


def _expect_forked_exit(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != EXIT_FORKED:
        raise RuntimeError(f"the child that returned ended with {code}")


def _forget() -> None:
    if (child := os.fork()) != 0:
        _expect_forked_exit(child)


def forking(ctx: Context) -> None:
    child = 0
    match ctx.job_type.rpartition("_")[2]:
        case "quick":
            return
        case "pool":
            with _FORK.Pool(2) as pool:
                assert pool.map(_absolute, [-1, 2]) == [1, 2]
        case "executor":
            with ProcessPoolExecutor(2, mp_context=_FORK) as executor:
                assert list(executor.map(_absolute, [-1, 2])) == [1, 2]
        case "terminated":
            _terminate()
        case "forgetful":
            if (child := os.fork()) == 0:
                return
            _expect_forked_exit(child)
        case "threaded":
            with ThreadPoolExecutor(1) as threads:
                threads.submit(_forget).result()
        case "orphaned":
            if (child := os.fork()) == 0:
                time.sleep(LONG_SECONDS)
                os._exit(0)
    _record(ctx, child)
    while not _is_open():
        time.sleep(0.05)
        ctx.report(0.5)


async def forking_async(ctx: Context) -> None:
    child = 0
    match ctx.job_type.rpartition("_")[2]:
        case "quick":
            return
        case "pool":
            with _FORK.Pool(2) as pool:
                assert pool.map(_absolute, [-1, 2]) == [1, 2]
        case "executor":
            with ProcessPoolExecutor(2, mp_context=_FORK) as executor:
                assert await asyncio.get_running_loop().run_in_executor(executor, _absolute, -1) == 1
        case "terminated":
            _terminate()
        case "forgetful":
            # The loop has work when the child comes back to it.
            asyncio.get_running_loop().call_soon(_record, ctx)
            if (child := os.fork()) == 0:
                return
            await asyncio.to_thread(_expect_forked_exit, child)
            return
        case "threaded":
            await asyncio.to_thread(_forget)
        case "orphaned":
            if (child := os.fork()) == 0:
                time.sleep(LONG_SECONDS)  # noqa: ASYNC251  # in the child
                os._exit(0)
    _record(ctx, child)
    while not _is_open():  # the test opens it
        await asyncio.sleep(0.05)
        ctx.report(0.5)
