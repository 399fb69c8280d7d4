# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""Which user Postgres runs as, and what that user must be let through; postgres.py asks before each start.

Postgres refuses to run as root. Where we are root (a container, a build machine), it runs as `nobody`, who
exists everywhere. That user must be able to reach the data directory and the binaries, perhaps below a
private home.
"""

import os
import pwd
import stat
import subprocess
from pathlib import Path

from heimdex_cli.errors import ServerFailed


def account_for_postgres(data: Path) -> tuple[int, int] | None:
    """(uid, gid) to run Postgres as; None means as ourselves, since we are not root.

    An existing cluster keeps its owner. Raises ServerFailed when it belongs to a user that we cannot become.
    """
    me = os.geteuid()
    owner = data.stat() if data.exists() else None
    if me != 0:
        if owner is not None and owner.st_uid != me:
            raise ServerFailed(f"The Postgres data in {data} belong to another user (uid {owner.st_uid}).")
        return None
    if owner is not None and owner.st_uid != 0:
        return owner.st_uid, owner.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def let_pass(account: tuple[int, int], directory: Path, binaries: Path) -> list[Path]:
    """Let this user reach both folders: others get the search permission (o+x), never read, on parents
    without it.

    Returns the folders whose permissions were changed, so that the user can be told.
    """
    opened = []
    for folder in [directory, *directory.parents, *binaries.parents]:
        found = folder.stat()
        if found.st_uid != account[0] and not found.st_mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
            opened.append(folder)
    if not _can_run(account, binaries / "postgres"):
        # Installed under a strict umask: the package's own files, nobody's secrets.
        _let_read(binaries.parent)
    return opened


def _let_read(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            executable = bool(mode & stat.S_IXUSR)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if executable else 0))


def _can_run(account: tuple[int, int], program: Path) -> bool:
    try:
        done = subprocess.run(
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
    return done.returncode == 0
