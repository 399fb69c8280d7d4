"""Files in a folder: durable, never visible in part, and without a trace after they are deleted.

A file is made as a folder with its two objects among the temporaries, and becomes visible by one rename of that folder
to its key. A rename onto a folder that is not empty fails, so a file is never overwritten, on any file system, also
without hard links. Everything is synced before `create` returns: the objects, their folder, and each folder above it.

A deletion renames the file, or the whole prefix, to the temporaries, and removes it there. So a killed process leaves
only temporaries, all in one folder; `sweep` removes the old ones. Folders that a deletion leaves empty are removed with
rmdir, which fails where another process has just put something; a create whose folder vanished makes it again.

The root itself is never made: where it is missing, a volume is not mounted, and its files must not be written below it.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from heimdex_files import stored as layout
from heimdex_files.backends.backend import Describe
from heimdex_files.errors import AlreadyThere, Damaged, Full, NotFound, Unavailable
from heimdex_files.source import Measured
from heimdex_files.stored import ABOUT, Listed, Stored

TEMPORARIES: Final = ".incoming"
DATA: Final = "data"
#: Names in the root that are no file of ours: a new volume has the second.
_NOT_FILES: Final = (TEMPORARIES, "lost+found")
#: The disk starts to write after so many bytes. Without it, the sync at the end waits for the whole file.
FLUSH_BYTES: Final = 32 * 1024 * 1024
#: How often a create makes its folders again, because deletions remove them.
_RETRIES: Final = 1_000

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


class LocalFolder:
    """A backend in a folder, which may be a volume that several hosts share."""

    may_be_unmounted = True

    def __init__(self, root: Path) -> None:
        self.name = f"the folder {root}"
        self._root = root
        self._temporaries = root / TEMPORARIES
        self._flushes = ThreadPoolExecutor(max_workers=4, thread_name_prefix="files-flush")

    def create(self, key: str, source: Measured, describe: Describe) -> Stored:
        """Store the source, or nothing of it. See Backend.create."""
        target = self._root / key
        with self.in_words(f"store {key!r}"):
            if os.path.lexists(target):
                raise _already_there(key)
            folder = self._new_temporary()
        try:
            self._write(folder / DATA, source, key)
            file = describe(DATA)
            with self.in_words(f"store {key!r}"):
                _write_synced(folder / ABOUT, layout.encode(file))
                _sync_folder(folder)
                self._publish(folder, target, key)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return file

    def describe(self, key: str) -> Stored | None:
        """Return the description of a file; None if there is none. See Backend.describe."""
        with self.in_words(f"read {key!r}"):
            try:
                text = (self._root / key / ABOUT).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                self._check_root()
                return None
        return layout.decode(text, key)

    def open(self, key: str, stored: Stored, start: int) -> "_OpenFile":
        """Open the bytes of a file. See Backend.open."""
        with self.in_words(f"read {key!r}"):
            try:
                descriptor = os.open(self._root / key / stored.data, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._check_root()
                raise NotFound(f"The bytes of the file {key!r} are gone: restore them from a backup.") from None
            size = os.fstat(descriptor).st_size
        if size != stored.bytes:
            os.close(descriptor)
            raise Damaged(
                f"The file {key!r} has {size:,} bytes, but {stored.bytes:,} were stored: restore it from a backup."
            )
        return _OpenFile(self, descriptor, key)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove these keys and everything below them. See Backend.delete."""
        with self.in_words("delete files"):
            self._check_root()
            for key in keys:
                target = self._root / key
                if target.is_dir():
                    with suppress(FileNotFoundError):
                        shutil.rmtree(self._hidden(target))
                self._remove_empty_folders(target.parent)  # also those of a deletion that was killed

    def list(self, prefix: str, after: str | None) -> Iterator[Listed]:
        """Yield the keys below a prefix. See Backend.list."""
        with self.in_words("list files"):
            self._check_root()
            yield from self._walk(prefix, None if after is None else f"{after}/")

    def is_empty(self) -> bool:
        """Whether the folder holds nothing. See Backend.is_empty."""
        with self.in_words("list files"):
            self._check_root()
            return all(name in _NOT_FILES for name in os.listdir(self._root))

    def sweep(self, older_than_seconds: float, now: float) -> int:
        """Remove old temporaries, by the time of their last write, and old empty folders. See Backend.sweep."""
        removed = 0
        with self.in_words("remove temporary files"):
            self._check_root()
            with suppress(FileNotFoundError):
                for entry in list(os.scandir(self._temporaries)):
                    if now - _last_change(entry.path) < older_than_seconds:
                        continue
                    with suppress(FileNotFoundError):
                        if entry.is_dir(follow_symlinks=False):
                            shutil.rmtree(entry.path)
                        else:
                            os.unlink(entry.path)
                        removed += 1
            for folder in _folders(self._root):
                if folder.name not in _NOT_FILES:
                    _remove_if_empty(folder, now - older_than_seconds)
        return removed

    @contextmanager
    def in_words(self, what: str) -> Iterator[None]:
        """Turn what the operating system refuses into Full or Unavailable. `what`: completes "cannot ..."."""
        try:
            yield
        except OSError as error:
            raise self._named(error, what) from error

    def _named(self, error: OSError, what: str) -> Unavailable:
        begin = f"Cannot {what} in {self._root}: "
        if error.errno in _FULL:
            return Full(f"{begin}no space is left. Free some, or enlarge the volume of HEIMDEX_FILES_URL.")
        if error.errno == errno.EFBIG:
            return Full(f"{begin}it is larger than the file system or a limit of this process allows.")
        if error.errno == errno.EROFS:
            return Unavailable(f"{begin}it is mounted read-only. Mount the volume of HEIMDEX_FILES_URL writable.")
        if error.errno in _FORBIDDEN:
            return Unavailable(
                f"{begin}the user {os.geteuid()} has no permission. Make that user the owner of the folder."
            )
        if not self._root.is_dir():
            return Unavailable(
                f"{begin}that folder does not exist. Mount its volume, create it, or correct HEIMDEX_FILES_URL."
            )
        return Unavailable(f"{begin}{error.strerror or error}. Check the disk or the volume of HEIMDEX_FILES_URL.")

    def _check_root(self) -> None:
        """Raise the OSError of a root that cannot be entered."""
        os.scandir(self._root).close()

    def _make_temporaries(self) -> None:
        try:
            self._temporaries.mkdir()
        except FileExistsError:
            return
        _sync_folder(self._root)

    def _hidden(self, target: Path) -> Path:
        """Move a folder to the temporaries, so that it is gone at once. On a full disk it stays, and is returned."""
        removed = self._temporaries / _temporary_name()
        try:
            self._make_temporaries()
            os.rename(target, removed)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return target  # a deletion is what a full disk needs
        return removed

    def _new_temporary(self) -> Path:
        self._make_temporaries()
        folder = self._temporaries / _temporary_name()
        folder.mkdir()
        return folder

    def _write(self, path: Path, source: Measured, key: str) -> None:
        """Write and sync the source. An error of the source is raised as it is."""
        with self.in_words(f"store {key!r}"):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        flush: Future[None] | None = None
        unflushed = 0
        try:
            for piece in source:
                with self.in_words(f"store {key!r}"):
                    _write_all(descriptor, piece)
                    unflushed += len(piece)
                    if unflushed >= FLUSH_BYTES:
                        if flush:
                            flush.result()
                        flush, unflushed = self._flushes.submit(os.fdatasync, descriptor), 0
            with self.in_words(f"store {key!r}"):
                if flush:
                    flush.result()
                    flush = None
                os.fsync(descriptor)
        finally:
            if flush:  # the descriptor's number may be another file's as soon as it is closed
                flush.exception()
            os.close(descriptor)

    def _publish(self, folder: Path, target: Path, key: str) -> None:
        """Make a finished temporary visible at its key, durably."""
        for _ in range(_RETRIES):
            try:
                self._make_folders(target.parent)
                os.rename(folder, target)
                break
            except FileNotFoundError:
                self._check_root()  # otherwise a deletion has removed a folder that was empty until now
                os.stat(folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise _already_there(key) from None
                raise
        else:
            raise OSError(errno.EAGAIN, "the folder is removed again and again")
        for parent in target.parents:
            # All of them: another create may have made one and not have synced it yet. One that is gone was deleted
            # after the rename, with the file.
            with suppress(FileNotFoundError):
                _sync_folder(parent)
            if parent == self._root:
                break

    def _make_folders(self, folder: Path) -> None:
        """Make the folders between the root and this one. Never the root."""
        below = self._root
        for part in folder.relative_to(self._root).parts:
            below /= part
            with suppress(FileExistsError):
                below.mkdir()

    def _remove_empty_folders(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass  # another deletion removed it
            except OSError:
                return  # not empty
            folder = folder.parent

    def _walk(self, prefix: str, after: str | None) -> Iterator[Listed]:
        try:
            entries = list(os.scandir(self._root / prefix))
        except (FileNotFoundError, NotADirectoryError):
            return  # removed meanwhile
        objects = [each for each in entries if not each.is_dir(follow_symlinks=False)]
        if prefix and objects and (after is None or f"{prefix}/" > after):
            listed = _listed(prefix, objects)
            if listed:
                yield listed
                if listed.is_whole:
                    return
        for folder in sorted((each for each in entries if each.is_dir(follow_symlinks=False)), key=_in_order):
            if not prefix and folder.name in _NOT_FILES:
                continue
            below = f"{prefix}/{folder.name}" if prefix else folder.name
            if after is None or f"{below}/" > after or (after.startswith(f"{below}/") and after != f"{below}/"):
                yield from self._walk(below, after)


class _OpenFile:
    """The bytes of a file on this disk. They stay readable when the file is deleted."""

    def __init__(self, folder: LocalFolder, descriptor: int, key: str) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._key = key

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`. See Bytes.read."""
        with self._folder.in_words(f"read {self._key!r}"):
            return os.pread(self._descriptor, length, start)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _folders(path: Path | str) -> list["os.DirEntry[str]"]:
    with os.scandir(path) as entries:
        return [each for each in entries if each.is_dir(follow_symlinks=False)]


def _remove_if_empty(folder: "os.DirEntry[str]", before: float) -> None:
    """Remove the empty folders below this one, and then it, as far as they did not change since `before`.

    A process leaves them that was killed between making a folder and putting something in it, or between a deletion and
    the removal of its folder.
    """
    with suppress(OSError):  # gone, or not empty any more
        is_old = folder.stat(follow_symlinks=False).st_mtime < before
        with os.scandir(folder.path) as entries:
            below = list(entries)
        for entry in below:
            if entry.is_dir(follow_symlinks=False):
                _remove_if_empty(entry, before)
        if is_old and all(entry.is_dir(follow_symlinks=False) for entry in below):
            os.rmdir(folder.path)


def _already_there(key: str) -> AlreadyThere:
    return AlreadyThere(f"The file {key!r} exists already, and files are never overwritten: use another key.")


def _temporary_name() -> str:
    return secrets.token_hex(16)


def _in_order(entry: "os.DirEntry[str]") -> str:
    return f"{entry.name}/"


def _write_all(descriptor: int, piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _write_synced(path: Path, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write_all(descriptor, text)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders, such as CIFS, syncs them itself
            raise
    finally:
        os.close(descriptor)


def _listed(key: str, objects: Sequence["os.DirEntry[str]"]) -> Listed | None:
    """Describe the objects of one key; None if they vanished meanwhile."""
    size, changed_at, is_whole = 0, 0.0, False
    for each in objects:
        try:
            status = each.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        size += status.st_size
        changed_at = max(changed_at, status.st_mtime)
        is_whole |= each.name == ABOUT and stat.S_ISREG(status.st_mode)
    return Listed(key, changed_at, size, is_whole) if changed_at else None


def _last_change(path: str) -> float:
    """Return when this file, this folder or something in it changed last; infinity if it vanished meanwhile."""
    try:
        newest = os.lstat(path).st_mtime
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    except FileNotFoundError:
        return float("inf")
    return newest
