# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""Chooses the user that Postgres runs as, and gives that user access to its files; postgres.py calls it before each
start.

Postgres refuses to run as root. Where this process is root (a container, a build machine), Postgres runs as `nobody`, a
user that exists everywhere. That user must be able to reach the data directory and the binaries, which may be below a
private home directory.
"""

import os
import pwd
import stat
import subprocess
from pathlib import Path

from heimdex_cli.errors import ServerFailed


def account_for_postgres(data: Path) -> tuple[int, int] | None:
    """Return the (uid, gid) to run Postgres as; None means the user of this process, which is not root.

    An existing cluster keeps its owner. Raises ServerFailed when it belongs to another user and this process is not
    root.
    """
    own_uid = os.geteuid()
    status = data.stat() if data.exists() else None
    if own_uid != 0:
        if status is not None and status.st_uid != own_uid:
            raise ServerFailed(f"The Postgres data in {data} belong to another user (uid {status.st_uid}).")
        return None
    if status is not None and status.st_uid != 0:
        return status.st_uid, status.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def let_pass(account: tuple[int, int], directory: Path, binaries: Path) -> list[Path]:
    """Give this user access to both folders: adds the search permission for others (o+x), never read, to each parent
    that lacks it.

    Binaries that the user still cannot run become readable by all users.

    Returns the folders whose search permission was changed, so that the caller can report them.
    """
    opened = []
    for folder in [directory, *directory.parents, *binaries.parents]:
        status = folder.stat()
        if status.st_uid != account[0] and not status.st_mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)
            opened.append(folder)
    if not _can_run(account, binaries / "postgres"):
        # The package was installed under a strict umask. Its files are public, so that they may become readable.
        _make_readable(binaries.parent)
    return opened


def _make_readable(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            executable = bool(mode & stat.S_IXUSR)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if executable else 0))


def _can_run(account: tuple[int, int], program: Path) -> bool:
    try:
        process = subprocess.run(
            [str(program), "--version"],
            user=account[0],
            group=account[1],
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
        )
    except OSError:
        return False
    return process.returncode == 0
