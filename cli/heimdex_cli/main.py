"""The console script `heimdex`: parses the command line, and turns every error into one sentence and an exit code.

Exit codes: 0 success (watch: the job completed), 1 failure (watch: the job failed), 2 invalid input, 3 watch: the job
was canceled, 4 the API does not answer, 130 interrupted, 141 the reader of standard output closed the pipe.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators

from heimdex_cli.client import Job, JobsApi, Status
from heimdex_cli.commands.key import new_key
from heimdex_cli.commands.watch import EXIT_CODES, describe_end, follow
from heimdex_cli.errors import HeimdexError, Unusable
from heimdex_cli.output.progress import open_board
from heimdex_cli.output.tables import describe, print_events, print_jobs, print_types
from heimdex_cli.parameters import assembled

INTERRUPTED = 130
UNREAD = 141
DEFAULT_LIMIT = 50
MAX_LIMIT = 1_000_000_000

JsonFlag = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Annotated[bool, Parameter(negative=())]
Include = Annotated[str | None, Parameter(name="--include")]


def _version() -> str:
    try:
        return version("heimdex-jobs")
    except PackageNotFoundError:
        return "unknown (not installed)"


app = App(
    name="heimdex",
    help="Submit media jobs and follow them, or run the whole system on this machine. "
    "HEIMDEX_URL is the address of the API (default http://localhost:8000). HEIMDEX_API_KEY is the API key, if the API "
    "requires one.",
    version=_version,
)
app.register_install_completion_command(help="Install shell completion for this command.")


@app.command
def run() -> int:
    """Run the whole system on this machine until Ctrl-C. Its data are in .heimdex/ and survive a restart."""
    # Imported here because it loads packages that only the embedded system needs.
    from heimdex_cli.commands.run import run as run_system

    return run_system()


@app.command
def demo() -> int:
    """Start the whole system on free ports, run one job that completes and one that fails, then stop everything."""
    from heimdex_cli.commands.demo import demo as run_demo

    return run_demo()


@app.command
def check(modules: str) -> int:
    """Check the pipelines of a Python module, and the code of all their stages, as the services do when they start.

    Prints the job type, the name and the bound arguments of each stage. Exit code 2: one sentence says what is wrong.

    Parameters
    ----------
    modules
        The name of the module, or of several, separated by commas. The current folder is on the path.
    """
    # Imported here because it is the only command that imports the packages of pipelines.
    from heimdex_cli.commands.check import check as check_pipelines

    check_pipelines(modules)


@app.command
def submit(
    *,
    job_type: Annotated[str, Parameter(name="--type")] = "mock_process",
    param: Annotated[tuple[str, ...], Parameter(name="--param", negative=(), allow_leading_hyphen=True)] = (),
    params: Annotated[str | None, Parameter(name="--params", allow_leading_hyphen=True)] = None,
    fail_at: str | None = None,
    callback_url: str | None = None,
    watch: Flag = False,
    as_json: JsonFlag = False,
) -> int:
    """Submit a job and print its id.

    Parameters
    ----------
    job_type
        The job's type. `heimdex types` lists the types and their parameters.
    param
        A parameter of the job, as name=value; repeatable. The value is text, or JSON where the type has a number,
        true or false, an array or an object there. a.b=value sets the key b of the object a.
    params
        All parameters as a JSON object, or @FILE with one; @- is standard input. --param overrides them.
    fail_at
        The stage at which the job fails, on every attempt.
    callback_url
        The URL to which the API POSTs the finished job, signed.
    watch
        Follow the job until it reaches a terminal state, as `heimdex watch` does.
    as_json
        Print the API's response instead (with --watch: the finished job).
    """
    with JobsApi.from_environment() as api:

        def schema() -> dict[str, Any] | None:
            return next((each["params"] for each in api.job_types() if each["type"] == job_type), None)

        job_id = api.submit(job_type, fail_at, callback_url, assembled(params, param, schema))
        if watch:
            return _watch(api, job_id, as_json=as_json)
    _print_json({"job_id": job_id}) if as_json else print(job_id)
    return 0


@app.command
def types(*, as_json: JsonFlag = False) -> int:
    """List the job types with their stages, and their parameters as `heimdex submit --param` takes them.

    Parameters
    ----------
    as_json
        Print the types as the API returns them, one per line, with the JSON schema of their parameters.
    """
    with JobsApi.from_environment() as api:
        known = api.job_types()
    if as_json:
        for each in known:
            _print_json(each)
    else:
        print_types(known)
    return 0


@app.command
def get(job_id: str, *, include: Include = None, as_json: JsonFlag = False) -> int:
    """Print the current state of a job.

    Parameters
    ----------
    job_id
        The id that `heimdex submit` printed.
    include
        What else to print, separated by a comma: params, outputs.
    as_json
        Print the API's response.
    """
    with JobsApi.from_environment() as api:
        job = api.get(job_id, include)
    _print_json(job) if as_json else print(describe(job))
    return 0


@app.command
def watch(job_id: str, *, traceback: Flag = False, as_json: JsonFlag = False) -> int:
    """Follow a job until it reaches a terminal state. Exit code: 0 completed, 1 failed, 3 canceled.

    Parameters
    ----------
    job_id
        The id that `heimdex submit` printed.
    traceback
        Also show the traceback of each error, where there is one.
    as_json
        Print the finished job as the API returns it. The progress goes to standard error.
    """
    with JobsApi.from_environment() as api:
        return _watch(api, job_id, as_json=as_json, tracebacks=traceback)


@app.command(name="list")
def list_jobs(
    *,
    status: Status | None = None,
    job_type: Annotated[str | None, Parameter(name="--type")] = None,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=MAX_LIMIT))] = DEFAULT_LIMIT,
    all_jobs: Annotated[bool, Parameter(name="--all", negative=())] = False,
    include: Include = None,
    as_json: JsonFlag = False,
) -> int:
    """List jobs, newest first.

    Parameters
    ----------
    status
        Only jobs that have this status now.
    job_type
        Only jobs of this type.
    limit
        The maximum number of jobs to list.
    all_jobs
        List all jobs, without a limit.
    include
        What else to print of each job, separated by a comma: params, outputs.
    as_json
        Print the jobs as the API returns them, one per line.
    """
    with JobsApi.from_environment() as api:
        # Requests one job more than is shown, to learn whether there are more.
        jobs = api.jobs(status, job_type, None if all_jobs else limit + 1, include)
        shown = jobs if all_jobs else islice(jobs, limit)
        if as_json:
            for job in shown:
                _print_json(job)
        else:
            print_jobs(shown, [] if include is None else include.split(","))
        if not all_jobs and next(jobs, None) is not None:
            print(f"There are more jobs: these are the newest {limit} (see --limit and --all).", file=sys.stderr)
    return 0


@app.command
def cancel(job_id: str, *, include: Include = None, as_json: JsonFlag = False) -> int:
    """Cancel an unfinished job. A pending job never starts; a running stage is interrupted.

    Parameters
    ----------
    job_id
        The id that `heimdex submit` printed.
    include
        Print the canceled job too, and of it, separated by a comma: params, outputs.
    as_json
        Print the API's response.
    """
    with JobsApi.from_environment() as api:
        job = api.cancel(job_id, include)
    _print_change("The job is canceled.", job, include, as_json=as_json)
    return 0


@app.command
def retry(
    job_id: str, *, from_start: Flag = False, include: Include = None, watch: Flag = False, as_json: JsonFlag = False
) -> int:
    """Run a failed or canceled job again, from the stage where it failed or was canceled.

    Parameters
    ----------
    job_id
        The id that `heimdex submit` printed.
    from_start
        Run it from the first stage instead.
    include
        Print the job too, and of it, separated by a comma: params, outputs.
    watch
        Follow the job until it reaches a terminal state, as `heimdex watch` does.
    as_json
        Print the API's response (with --watch: the finished job).
    """
    with JobsApi.from_environment() as api:
        job = api.retry(job_id, from_start=from_start, include=include)
        if watch:
            return _watch(api, job_id, as_json=as_json)
    _print_change("The job runs again.", job, include, as_json=as_json)
    return 0


@app.command
def events(job_id: str, *, traceback: Flag = False, as_json: JsonFlag = False) -> int:
    """Print the history of a job: every hand-over, and every attempt that failed or was lost.

    Parameters
    ----------
    job_id
        The id that `heimdex submit` printed.
    traceback
        Also print the traceback of each error, where there is one, after the table.
    as_json
        Print the events as the API returns them, one per line.
    """
    with JobsApi.from_environment() as api:
        history = api.events(job_id)
    if as_json:
        for entry in history:
            _print_json(entry)
    else:
        print_events(history, tracebacks=traceback)
    return 0


@app.command
def key(tenant: str, *, as_json: JsonFlag = False) -> int:
    """Create an API key for a tenant. The first line is the secret key, the second the entry for the gateway.

    The key is not stored. A tenant may have several keys: append the entry to HEIMDEX_API_KEYS, after a comma.

    Parameters
    ----------
    tenant
        The tenant whose jobs the key gives access to. `default` owns the jobs that were submitted without a key.
    as_json
        Print both as a JSON object.
    """
    api_key, entry = new_key(tenant)
    if as_json:
        _print_json({"key": api_key, "entry": entry})
    else:
        print(f"HEIMDEX_API_KEY={api_key}\nHEIMDEX_API_KEYS={entry}")
    return 0


def _print_change(sentence: str, job: Job, include: str | None, *, as_json: bool) -> None:
    if as_json:
        _print_json(job)
        return
    print(sentence)
    if include is not None:
        print(describe(job))


def _watch(api: JobsApi, job_id: str, *, as_json: bool = False, tracebacks: bool = False) -> int:
    # With --json, standard output carries only the response.
    with open_board(sys.stderr if as_json else sys.stdout) as board:
        job = follow(api, job_id, board, tracebacks=tracebacks)
    _print_json(job) if as_json else print(describe_end(job))
    return EXIT_CODES[job["status"]]


def _check_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise Unusable(f"The argument {argument[:80]!r} is not valid UTF-8 and cannot be sent.") from error


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def call(arguments: Sequence[str]) -> int:
    """Run one command line, given without the program's name. Prints the sentence of an error to standard error.

    Returns the exit code.
    """
    try:
        _check_text(arguments)
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        problem: HeimdexError = Unusable(f"{' '.join(str(error).split())} See `heimdex --help`.")
    except HeimdexError as error:
        problem = error
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # As in `heimdex list --all | head`. Standard output goes to /dev/null, so that the flush at exit does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    print(f"heimdex: {problem.sentence}", file=sys.stderr)
    if problem.detail:
        print(problem.detail, file=sys.stderr)
    return problem.exit_code


def main() -> None:
    """Run the command line of this process and exit with its exit code."""
    sys.exit(call(sys.argv[1:]))
