"""The console script `heimdex`: reads the command line, and turns every error into one sentence and an exit
code.

Exit codes: 0 done (watch: completed), 1 it did not work (watch: failed), 2 unusable input, 3 watch: canceled,
4 the API does not answer, 130 interrupted.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from heimdex_cli.api import Job, JobsApi
from heimdex_cli.board import open_board
from heimdex_cli.errors import HeimdexError, Unusable
from heimdex_cli.follow import EXIT_CODES, describe_end, follow

INTERRUPTED = 130


def _version() -> str:
    try:
        return version("heimdex-jobs")
    except PackageNotFoundError:
        return "unknown (not installed)"


app = App(
    name="heimdex",
    help="Submit media jobs and follow them, or run the whole system on this machine. "
    "HEIMDEX_URL says where the API is (default http://localhost:8000).",
    version=_version,
)


@app.command
def run() -> int:
    """Run the whole system here until Ctrl-C; its data live under .heimdex/ and survive a restart."""
    # Here, because it imports what only the embedded system needs.
    from heimdex_cli.run import run as run_system

    return run_system()


@app.command
def demo() -> int:
    """Start the whole system on free ports, run one job that completes and one that fails, stop
    everything.
    """
    from heimdex_cli.demo import demo as run_demo

    return run_demo()


@app.command
def submit(
    *,
    job_type: Annotated[str, Parameter(name="--type")] = "mock_process",
    fail_at: str | None = None,
    watch: Annotated[bool, Parameter(negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Submit a job and print its id.

    Parameters
    ----------
    job_type
        The job's type.
    fail_at
        A stage at which the job shall fail, on every attempt.
    watch
        Follow the job to its end, as `heimdex watch` does.
    as_json
        Print the API's answer instead (with --watch: the job as it ended).
    """
    with JobsApi.from_environment() as api:
        job_id = api.submit(job_type, fail_at)
        if watch:
            return _watch(api, job_id, as_json=as_json)
    print(json.dumps({"job_id": job_id}) if as_json else job_id)
    return 0


@app.command
def get(job_id: str, *, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> int:
    """Print a job as it is now.

    Parameters
    ----------
    job_id
        As `heimdex submit` printed it.
    as_json
        Print the API's answer.
    """
    with JobsApi.from_environment() as api:
        job = api.get(job_id)
    print(json.dumps(job, indent=2) if as_json else _describe(job))
    return 0


@app.command
def watch(job_id: str) -> int:
    """Follow a job until it ends. Exit code: 0 completed, 1 failed, 3 canceled.

    Parameters
    ----------
    job_id
        As `heimdex submit` printed it.
    """
    with JobsApi.from_environment() as api:
        return _watch(api, job_id)


def _watch(api: JobsApi, job_id: str, *, as_json: bool = False) -> int:
    # With --json, standard output is for the answer alone.
    with open_board(sys.stderr if as_json else sys.stdout) as board:
        job = follow(api, job_id, board)
    print(json.dumps(job, indent=2) if as_json else describe_end(job))
    return EXIT_CODES[job["status"]]


def _describe(job: Job) -> str:
    rows = [(name, value) for name, value in job.items() if value is not None]
    return "\n".join(f"{name:<11} {json.dumps(value) if isinstance(value, dict) else value}" for name, value in rows)


def call(arguments: Sequence[str]) -> int:
    """Run one command line, given without the program's name. Returns the exit code; an error's sentence is
    printed.
    """
    try:
        answer = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return answer if isinstance(answer, int) else 0
    except CycloptsError as error:
        problem: HeimdexError = Unusable(f"{' '.join(str(error).split())} See `heimdex --help`.")
    except HeimdexError as error:
        problem = error
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"heimdex: {problem.sentence}", file=sys.stderr)
    if problem.detail:
        print(problem.detail, file=sys.stderr)
    return problem.exit_code


def main() -> None:
    """The console script."""
    sys.exit(call(sys.argv[1:]))
