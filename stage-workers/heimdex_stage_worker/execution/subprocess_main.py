"""The process in which `subprocess_attempt` runs one attempt. It is started as `python -m MODULE FD LOGS`.

It reads the work from its standard input, writes reports to the file descriptor FD, and dies with its parent. It leads
a process group of its own in its parent's session. LOGS are the arguments of `logs.configure_child`.
"""

import asyncio
import ctypes
import os
import signal
import sys
from typing import Final

from heimdex import code
from heimdex.attempt_state import AttemptState
from heimdex.binding import BoundFunction
from heimdex_contracts import pipelines
from heimdex_contracts.messages import NOTHING
from heimdex_contracts.runtime import forks, logs
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.runtime.run_to_end import run_to_end
from heimdex_contracts.settlement import Errored, Finished, Outcome
from heimdex_stage_worker.execution import failures
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.guarded_tasks import create_task
from heimdex_stage_worker.execution.subprocess_attempt import Report, Work, decode_work, encode_report
from heimdex_stage_worker.execution.threads import Threads

REPORT_SECONDS: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


async def run(work: Work, reports: int, log: Logger, running: list[Attempt]) -> None:
    """Run the attempt, write its reports, and exit. The last report has the outcome.

    reports: the file descriptor. running: gets the attempt once it runs.
    """
    loop = asyncio.get_running_loop()
    loop.set_task_factory(create_task)
    forks.protect(loop, (), f"heimdex-{work.stage}")
    state = AttemptState(
        job_id=work.job_id,
        job_type=work.job_type,
        stage=work.stage,
        attempt=work.attempt,
        expected_seconds=work.expected_seconds,
        mock_time_scale=work.mock_time_scale,
        params=work.params,
        finished=work.finished,
    )

    async def report_progress() -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if state.reported:
                os.write(reports, encode_report(Report(fraction=state.fraction)))

    function = _function_of(work)
    os.write(reports, encode_report(Report(began=True)))
    reporting = asyncio.create_task(report_progress())
    attempt = Attempt(function, state, work.timeout_seconds, Threads(work.stage), log)
    running.append(attempt)
    outcome = await attempt.run()
    reporting.cancel()
    os.write(reports, encode_report(_report_of(outcome)))
    logs.flush(drain_seconds=0)  # the reader of the output outlives this process
    os._exit(0)  # a task may ignore its cancellation


def _function_of(work: Work) -> BoundFunction:
    if not work.modules:
        return BoundFunction(code.imported(work.code))
    pipeline = pipelines.load(work.modules).by_type[work.job_type]
    return code.load(pipeline, pipeline.stage(work.stage))


def _report_of(outcome: Outcome) -> Report:
    if isinstance(outcome, Errored):
        return Report(
            ended=True,
            error=outcome.error,
            permanent=outcome.permanent,
            traceback=outcome.traceback,
            retry_after_seconds=outcome.retry_after_seconds,
        )
    return Report(ended=True, output=outcome.output if isinstance(outcome, Finished) else NOTHING)


def main() -> None:
    """Read the work, run the attempt, and exit. Never returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Before the process has its own group: with the worker's, the reader of the output survives the end of this one.
    log = logs.configure_child(sys.argv[2:])
    # In a group of its own, the worker can kill its children with it, and Ctrl-C in a terminal reaches only the worker.
    os.setpgid(0, 0)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)  # the worker ended before it sent the work
    reports = int(sys.argv[1])
    _keep_from_children(reports)
    try:
        running: list[Attempt] = []

        def fail(error: BaseException) -> None:
            for attempt in running:  # whatever code ended the loop, it belongs to the only attempt
                attempt.fail(error)

        run_to_end(asyncio.new_event_loop(), run(decode_work(line), reports, log, running), fail)
    except BrokenPipeError:
        pass  # the worker no longer reads the reports
    except Exception as error:
        os.write(reports, encode_report(_report_of(failures.errored(error))))
    logs.flush(drain_seconds=0)  # the reader of the output outlives this process
    os._exit(0)


def _keep_from_children(reports: int) -> None:
    """Prevent processes that the stage starts or forks from keeping the pipe open or writing to it."""
    os.set_inheritable(reports, False)

    def redirect_to_null() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, reports, inheritable=False)
        os.close(null)

    os.register_at_fork(after_in_child=redirect_to_null)


if __name__ == "__main__":
    main()
