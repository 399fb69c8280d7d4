"""The console script `heimdex-stage-worker STAGE`: reads the settings, loads the stage's code, runs its worker."""

import sys
from typing import Final

from heimdex_contracts import pipelines
from heimdex_contracts.errors import SettingsError
from heimdex_contracts.runtime import process, settings
from heimdex_contracts.runtime.process import Process
from heimdex_contracts.runtime.settings import Settings
from heimdex_stage_worker.execution.attempt import load_stage
from heimdex_stage_worker.worker import StageWorker

USAGE = """usage: heimdex-stage-worker STAGE     run the worker of this stage
       heimdex-stage-worker --list    print the stages of every pipeline, one per line"""

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
        load_stage(known.code_of(stage))
        return values

    if stage == "--list":
        try:
            print("\n".join(pipelines.load(settings.read(service="stage-worker").pipelines).stage_names))
        except SettingsError as error:
            print(error, file=sys.stderr)
            raise SystemExit(process.EXIT_UNUSABLE_SETTINGS) from None
        raise SystemExit(0)

    async def serve(running: Process) -> None:
        known = pipelines.load(running.settings.pipelines)
        await StageWorker(running, known, stage, load_stage(known.code_of(stage))).serve()

    sys.setswitchinterval(TURN_SECONDS)
    process.run(f"heimdex-{stage}", read_settings, serve)
