"""Atomic replacement of a file: after a kill at any moment, the old or the new file is complete.

The new file is written in its own folder next to the old one, synced to disk and renamed.  A writer
that was killed or interrupted may leave its folder behind; the next writer of the same path removes
it.

Locks, syncing the parent folder and setting permissions are best effort: shared folders and mounted
buckets often don't support them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".saving"
_LOCK = "lock"
_LONGEST_STEM = 64  # bytes; we append to it, and file systems allow 255, some only 143
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; after the block has succeeded, that file replaces `path`.

    The yielded path has the same suffix and is in a new folder on the same disk.  If `path` is a
    symbolic link, the file that it points to is replaced.  After an error, `path` is unchanged.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder instead of a file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    _remove_abandoned(target)
    folder, lock = _new_folder(target)
    try:
        draft = folder / f"new{Path(path).suffix}"
        yield draft
        _sync(draft)
        with contextlib.suppress(OSError):  # exFAT and CIFS have no permissions
            draft.chmod(_mode_for(target, folder))
        os.replace(draft, target)
        with contextlib.suppress(OSError):  # the file has been replaced, so this is no failure
            _sync(target.parent)  # Windows can't open folders
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _new_folder(target: Path) -> tuple[Path, FileIO]:
    """A new folder for this writer, and its lock, which shows others that the writer is alive."""
    while True:
        folder = target.with_name(f"{_stem_of(target)}.{secrets.token_hex(4)}{_SUFFIX}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            lock = _locked(folder / _LOCK)
            if lock is not None:
                return folder, lock


def _stem_of(target: Path) -> str:
    """The common prefix of the folders of all writers of this file, hashed if the name is long."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_STEM:
        return f".{target.name}"
    return f".{hashlib.sha256(name).hexdigest()[:16]}"


def _locked(path: Path) -> FileIO | None:
    """A new locked file, or None if another writer has just removed its folder.

    The system releases the lock when the process ends, and Python when nothing refers to the file
    any more, as after an interrupt.
    """
    try:
        lock = FileIO(path, "a")
    except FileNotFoundError:
        return None
    _lock(lock, wait=True)
    if _is_at(lock, path):
        return lock
    lock.close()
    return None


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether a path leads to this file.

    Two writers may be removing a folder: the second one makes a lock again that the first one has
    just removed.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(target: Path) -> None:
    """Remove folders of killed writers of this path, which are those that nobody has locked."""
    for folder in target.parent.glob("*" + _SUFFIX):
        stem, _, token = folder.name.removesuffix(_SUFFIX).rpartition(".")
        if stem != _stem_of(target) or len(token) != 8:
            continue
        # Another writer may remove it at the same time.
        with contextlib.suppress(OSError), FileIO(folder / _LOCK, "a") as lock:
            if _lock(lock, wait=False):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file: FileIO, *, wait: bool) -> bool:
    """Try to take the lock; also fails if the file system has no locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _mode_for(target: Path, folder: Path) -> int:
    """The permissions of the old file, or the default permissions if there is none."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return folder.stat().st_mode & 0o666  # mkdir has applied the umask


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, if the file system supports that."""
    # Windows flushes only what it can write; nobody can open a folder for writing.
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)
