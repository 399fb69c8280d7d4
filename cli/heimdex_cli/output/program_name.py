"""The command as the user must type it, for the sentences that suggest a command: while the virtual environment is not
active, the shell does not find the name alone.
"""

import os
import shutil
import sys
from pathlib import Path

NAME = "heimdex"


def typed(folder: Path | None = None) -> str:
    """Return `heimdex` if PATH leads to this installation, else the path of its console script.

    The path is relative when the script is below the current folder. When there is no console script, the result is
    `heimdex`.

    folder: the folder of the console script; by default that of the running Python.
    """
    script = (folder or Path(sys.executable).parent) / NAME
    on_path = shutil.which(NAME)
    if not script.exists() or (on_path and os.path.samefile(on_path, script)):
        return NAME
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
