"""The console script `heimdex-stage-worker STAGE`: reads the settings, loads the stage's code, runs its worker."""

import os
import signal
import sys
from typing import Final, NoReturn

from heimdex import code
from heimdex.binding import BoundFunction
from heimdex_contracts import pipelines
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime import process, settings
from heimdex_contracts.runtime.process import Process
from heimdex_contracts.runtime.settings import Settings
from heimdex_stage_worker.worker import StageWorker

USAGE = """usage: heimdex-stage-worker STAGE     run the worker of this stage
       heimdex-stage-worker --list    check the code of every stage, and print the stages, one per line"""

#: The interpreter's thread switch interval. The event loop, which renews the leases, competes with one thread per
#: blocking job and waits for each of them in turn; with Python's default of 5 ms it would wait too long.
TURN_SECONDS: Final = 0.001


def main() -> None:
    """Run the command. Never returns.

    Exit codes: 0 after a stop signal, 2 for an unknown stage or an invalid setting, 1 when the process must be
    restarted.
    """
    arguments = sys.argv[1:]
    if len(arguments) != 1:
        print(USAGE, file=sys.stderr)
        raise SystemExit(process.EXIT_UNUSABLE_SETTINGS)
    stage = arguments[0]
    if stage in {"-h", "--help"}:
        print(USAGE)
        raise SystemExit(0)

    def read_settings() -> Settings:
        values = settings.read(service="stage-worker")
        known = pipelines.load(values.pipelines)
        if stage not in known.stage_names:
            raise SettingsError(f"There is no stage {stage!r}; the stages are {', '.join(known.stage_names)}.")
        functions_of(known, stage)
        return values

    if stage == "--list":
        list_stages()

    async def serve(running: Process) -> None:
        known = pipelines.load(running.settings.pipelines)
        await StageWorker(running, known, stage, functions_of(known, stage)).serve()

    sys.setswitchinterval(TURN_SECONDS)
    process.run(f"heimdex-{stage}", read_settings, serve, capture_output=True)


def functions_of(known: Pipelines, stage: str) -> dict[str, BoundFunction]:
    """Return the function of the stage of this name in each job type that has one, by type. Raises SettingsError."""
    return {pipeline.type: code.load(pipeline, declared) for pipeline, declared in known.stages_named(stage)}


def list_stages() -> NoReturn:
    """Print the stages of every pipeline to stdout, one per line, and exit the process.

    Exit codes: 0, or 2 for an invalid setting or a stage whose code cannot be used (one line each on stderr).
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt is then one that a module raises
    # The list is read by programs. What the imported modules print goes to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as listed:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            known = pipelines.load(settings.read(service="stage-worker").pipelines)
        except SettingsError as error:
            process.exit_unusable(error)
        print("\n".join(known.stage_names), file=listed)
    problems: dict[str, None] = {}
    for stage in known.stage_names:
        for pipeline, declared in known.stages_named(stage):
            try:
                code.load(pipeline, declared)
            except SettingsError as error:
                problems[f"The stage {stage!r} cannot run. {error}"] = None  # several types may share the code
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.stderr.flush()
    os._exit(process.EXIT_UNUSABLE_SETTINGS if problems else 0)  # also if an imported module started threads
