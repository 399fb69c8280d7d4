"""Checks the declarations and the code of pipelines, with the words that each service uses when it starts."""

import os
import signal
import sys
from typing import NoReturn

from heimdex import code
from heimdex_cli.errors import Unusable
from heimdex_contracts import pipelines
from heimdex_contracts.errors import SettingsError


def check(modules: str) -> NoReturn:
    """Print a line for each stage of these modules: its job type, its name, and the arguments that are bound.

    modules: their names, separated by commas; the current folder is on the path. Exits the process: 0, or 2 after one
    sentence on stderr.
    """
    sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt is then one that a module raises
    # The lines are for programs too. What the imported modules print goes to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as lines:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        exit_code = 0
        try:
            print("\n".join(_checked(modules)), file=lines)
        except SettingsError as error:
            print(error, file=sys.stderr)
            exit_code = Unusable.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # also if an imported module started threads


def _checked(modules: str) -> list[str]:
    names = [name.strip() for name in modules.split(",") if name.strip()]
    loaded = pipelines.load(names)
    rows = [
        (pipeline.type, stage.name, ", ".join(code.load(pipeline, stage).bound_names))
        for pipeline in loaded.by_type.values()
        for stage in pipeline.stages
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows]
