"""The console script `heimdex`: reads the command line, and turns every error into one sentence and an exit
code.

Exit codes: 0 done (watch: completed), 1 it did not work (watch: failed), 2 unusable input, 3 watch: canceled,
4 the API does not answer, 130 interrupted, 141 nobody reads what it prints.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators

from heimdex_cli.client import JobsApi, Status
from heimdex_cli.commands.key import new_key
from heimdex_cli.commands.watch import EXIT_CODES, describe_end, follow
from heimdex_cli.errors import HeimdexError, Unusable
from heimdex_cli.output.progress import open_board
from heimdex_cli.output.tables import describe, print_events, print_jobs

INTERRUPTED = 130
UNREAD = 141
DEFAULT_LIMIT = 50
MAX_LIMIT = 1_000_000_000

JsonFlag = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Annotated[bool, Parameter(negative=())]


def _version() -> str:
    try:
        return version("heimdex-jobs")
    except PackageNotFoundError:
        return "unknown (not installed)"


app = App(
    name="heimdex",
    help="Submit media jobs and follow them, or run the whole system on this machine. "
    "HEIMDEX_URL says where the API is (default http://localhost:8000), HEIMDEX_API_KEY is the key for it, where it "
    "wants one.",
    version=_version,
)
app.register_install_completion_command(help="Let your shell complete the words of this command.")


@app.command
def run() -> int:
    """Run the whole system here until Ctrl-C; its data live under .heimdex/ and survive a restart."""
    # Here, because it imports what only the embedded system needs.
    from heimdex_cli.commands.run import run as run_system

    return run_system()


@app.command
def demo() -> int:
    """Start the whole system on free ports, run one job that completes and one that fails, stop
    everything.
    """
    from heimdex_cli.commands.demo import demo as run_demo

    return run_demo()


@app.command
def submit(
    *,
    job_type: Annotated[str, Parameter(name="--type")] = "mock_process",
    fail_at: str | None = None,
    callback_url: str | None = None,
    watch: Flag = False,
    as_json: JsonFlag = False,
) -> int:
    """Submit a job and print its id.

    Parameters
    ----------
    job_type
        The job's type.
    fail_at
        A stage at which the job shall fail, on every attempt.
    callback_url
        Where the API shall POST the job, signed, when it ends.
    watch
        Follow the job to its end, as `heimdex watch` does.
    as_json
        Print the API's answer instead (with --watch: the job as it ended).
    """
    with JobsApi.from_environment() as api:
        job_id = api.submit(job_type, fail_at, callback_url)
        if watch:
            return _watch(api, job_id, as_json=as_json)
    _print_json({"job_id": job_id}) if as_json else print(job_id)
    return 0


@app.command
def get(job_id: str, *, as_json: JsonFlag = False) -> int:
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
    _print_json(job) if as_json else print(describe(job))
    return 0


@app.command
def watch(job_id: str, *, as_json: JsonFlag = False) -> int:
    """Follow a job until it ends. Exit code: 0 completed, 1 failed, 3 canceled.

    Parameters
    ----------
    job_id
        As `heimdex submit` printed it.
    as_json
        Print the job as it ended, as the API's answer; what it does on the way goes to standard error.
    """
    with JobsApi.from_environment() as api:
        return _watch(api, job_id, as_json=as_json)


@app.command(name="list")
def list_jobs(
    *,
    status: Status | None = None,
    job_type: Annotated[str | None, Parameter(name="--type")] = None,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=MAX_LIMIT))] = DEFAULT_LIMIT,
    all_jobs: Annotated[bool, Parameter(name="--all", negative=())] = False,
    as_json: JsonFlag = False,
) -> int:
    """List jobs, newest first.

    Parameters
    ----------
    status
        Only jobs that are so now.
    job_type
        Only jobs of this type.
    limit
        How many at most.
    all_jobs
        All of them, however many.
    as_json
        Print the jobs as the API tells them, one a line.
    """
    with JobsApi.from_environment() as api:
        # One more than is shown, to know whether there are more.
        found = api.jobs(status, job_type, None if all_jobs else limit + 1)
        shown = found if all_jobs else islice(found, limit)
        if as_json:
            for job in shown:
                _print_json(job)
        else:
            print_jobs(shown)
        if not all_jobs and next(found, None) is not None:
            print(f"There are more: these are the newest {limit} (--limit, --all).", file=sys.stderr)
    return 0


@app.command
def cancel(job_id: str, *, as_json: JsonFlag = False) -> int:
    """Cancel a job that has not ended: it never starts, or its stage is interrupted.

    Parameters
    ----------
    job_id
        As `heimdex submit` printed it.
    as_json
        Print the API's answer.
    """
    with JobsApi.from_environment() as api:
        job = api.cancel(job_id)
    _print_json(job) if as_json else print("The job is canceled.")
    return 0


@app.command
def retry(job_id: str, *, from_start: Flag = False, watch: Flag = False, as_json: JsonFlag = False) -> int:
    """Run a failed or canceled job again, from the stage where it ended.

    Parameters
    ----------
    job_id
        As `heimdex submit` printed it.
    from_start
        From the first stage instead.
    watch
        Follow the job to its end, as `heimdex watch` does.
    as_json
        Print the API's answer (with --watch: the job as it ended).
    """
    with JobsApi.from_environment() as api:
        job = api.retry(job_id, from_start=from_start)
        if watch:
            return _watch(api, job_id, as_json=as_json)
    _print_json(job) if as_json else print("The job runs again.")
    return 0


@app.command
def events(job_id: str, *, as_json: JsonFlag = False) -> int:
    """Print what happened to a job: every hand-over and every attempt that failed.

    Parameters
    ----------
    job_id
        As `heimdex submit` printed it.
    as_json
        Print the events as the API tells them, one a line.
    """
    with JobsApi.from_environment() as api:
        history = api.events(job_id)
    if as_json:
        for entry in history:
            _print_json(entry)
    else:
        print_events(history)
    return 0


@app.command
def key(tenant: str, *, as_json: JsonFlag = False) -> int:
    """Make a key for a tenant: the first line is for its holder alone, the second for the gateway.

    It is kept nowhere. A tenant may have several; add the entry, after a comma, to those that are there.

    Parameters
    ----------
    tenant
        Whose jobs the key is for; `default` owns those that were submitted without a key.
    as_json
        Print both as an object.
    """
    made, entry = new_key(tenant)
    if as_json:
        _print_json({"key": made, "entry": entry})
    else:
        print(f"HEIMDEX_API_KEY={made}\nHEIMDEX_API_KEYS={entry}")
    return 0


def _watch(api: JobsApi, job_id: str, *, as_json: bool = False) -> int:
    # With --json, standard output is for the answer alone.
    with open_board(sys.stderr if as_json else sys.stdout) as board:
        job = follow(api, job_id, board)
    _print_json(job) if as_json else print(describe_end(job))
    return EXIT_CODES[job["status"]]


def _check_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise Unusable(f"The argument {argument[:80]!r} is no UTF-8, and cannot be sent.") from error


def _print_json(answer: Any) -> None:
    print(json.dumps(answer, ensure_ascii=False))


def call(arguments: Sequence[str]) -> int:
    """Run one command line, given without the program's name. Returns the exit code; an error's sentence is
    printed.
    """
    try:
        _check_text(arguments)
        answer = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except CycloptsError as error:
        problem: HeimdexError = Unusable(f"{' '.join(str(error).split())} See `heimdex --help`.")
    except HeimdexError as error:
        problem = error
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # As in `heimdex list --all | head`: nobody is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    print(f"heimdex: {problem.sentence}", file=sys.stderr)
    if problem.detail:
        print(problem.detail, file=sys.stderr)
    return problem.exit_code


def main() -> None:
    """The console script."""
    sys.exit(call(sys.argv[1:]))
