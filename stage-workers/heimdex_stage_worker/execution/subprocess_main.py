"""The process in which `subprocess_attempt` runs one attempt; started with `python -m`, a file descriptor its argument.

Reads the work from its standard input, writes reports to the file descriptor FD, and ends with its parent. It leads a
process group of its own, in its parent's session.
"""

import asyncio
import ctypes
import os
import signal
import sys
from typing import Final

from heimdex_contracts.settlement import Errored
from heimdex_stage_worker.context import StageContext
from heimdex_stage_worker.execution.attempt import Attempt, load_stage
from heimdex_stage_worker.execution.subprocess_attempt import Report, Work, decode_work, encode_report
from heimdex_stage_worker.execution.threads import Threads

REPORT_SECONDS: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


async def run(work: Work, reports: int) -> None:
    """Run the attempt; the last report says how it ended."""
    ctx = StageContext(
        job_id=work.job_id,
        job_type=work.job_type,
        stage=work.stage,
        attempt=work.attempt,
        expected_seconds=work.expected_seconds,
        mock_time_scale=work.mock_time_scale,
    )

    async def tell() -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if ctx.reported:
                os.write(reports, encode_report(Report(fraction=ctx.fraction)))

    function = load_stage(work.code)
    os.write(reports, encode_report(Report(began=True)))
    telling = asyncio.create_task(tell())
    outcome = await Attempt(function, ctx, None, Threads(work.stage)).run()
    telling.cancel()
    error, permanent = (outcome.error, outcome.permanent) if isinstance(outcome, Errored) else (None, False)
    os.write(reports, encode_report(Report(ended=True, error=error, permanent=permanent)))


def main() -> None:
    """Never returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A group of its own: the worker ends what this starts along with it, and Ctrl-C at a terminal is for the worker.
    os.setpgid(0, 0)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)  # the worker ended before it said what to do
    reports = int(sys.argv[1])
    _keep_to_itself(reports)
    try:
        asyncio.run(run(decode_work(line), reports))
    except BrokenPipeError:
        pass  # nobody listens any more
    except Exception as error:
        os.write(reports, encode_report(Report(ended=True, error=f"{type(error).__name__}: {error}")))
    os._exit(0)


def _keep_to_itself(reports: int) -> None:
    """Let no child that the stage starts or forks hold the pipe, or speak on it."""
    os.set_inheritable(reports, False)

    def let_go() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, reports, inheritable=False)
        os.close(nowhere)

    os.register_at_fork(after_in_child=let_go)


if __name__ == "__main__":
    main()
