"""How the person at the terminal types this command, for the sentences that tell them to: in a virtual environment that
is not active, its name alone is not found.
"""

import os
import shutil
import sys
from pathlib import Path

NAME = "heimdex"


def typed(folder: Path | None = None) -> str:
    """`heimdex`, where PATH leads to this one; else its path, relative where it is below the current folder.

    folder: where its console script is; by default beside the Python that runs it.
    """
    script = (folder or Path(sys.executable).parent) / NAME
    found = shutil.which(NAME)
    if not script.exists() or (found and os.path.samefile(found, script)):
        return NAME
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
