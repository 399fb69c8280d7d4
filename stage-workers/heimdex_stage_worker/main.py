"""The console script `heimdex-stage-worker STAGE`: reads the settings, loads the stage, runs its worker."""

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
       heimdex-stage-worker --list    print the stages of every pipeline, one a line"""

#: How long a blocking stage's thread computes before another gets its turn. The event loop, with its heartbeats, is one
#: among as many as there are jobs, and waits for all of them: with Python's own 5 ms too long.
TURN_SECONDS: Final = 0.001


def main() -> None:
    """Never returns: exits with 0 when told to stop, with 2 for an unknown stage or an unusable setting.

    With 1 when it must be started anew.
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
        found = settings.read()
        known = pipelines.load(found.pipelines)
        if stage not in known.stage_names:
            raise SettingsError(f"There is no stage {stage!r}; the stages are {', '.join(known.stage_names)}.")
        load_stage(known.code_of(stage))
        return found

    if stage == "--list":
        try:
            print("\n".join(pipelines.load(settings.read().pipelines).stage_names))
        except SettingsError as error:
            print(error, file=sys.stderr)
            raise SystemExit(process.EXIT_UNUSABLE_SETTINGS) from None
        raise SystemExit(0)

    async def serve(running: Process) -> None:
        known = pipelines.load(running.settings.pipelines)
        await StageWorker(running, known, stage, load_stage(known.code_of(stage))).serve()

    sys.setswitchinterval(TURN_SECONDS)
    process.run(f"heimdex-{stage}", read_settings, serve)
