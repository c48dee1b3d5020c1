"""Replacing a file so that a kill at any moment leaves the old one or the new one, whole.

The new file is written in a folder of its own beside the old one, synced to the disk, and renamed.
A writer that is killed leaves its folder behind, which the next writer of the same path removes.

Only what a whole file needs must succeed.  Shared folders and mounted buckets often refuse to lock,
to sync a folder or to change permissions; they get as much safety as they offer.
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
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".saving"
_LOCK = "lock"
_LONGEST_STEM = 64  # bytes; a name may have 255, on some file systems 143, and ours is longer
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path to write to; once the block has ended well, that file is the one at `path`.

    Parameters
    ----------
    path : path_like
        Where it is a symbolic link, the file that it points to is replaced.

    Yields
    ------
    Path
        A path with the ending of `path`, in a new folder on the same disk.

    Raises
    ------
    OSError
        If the file can't be written or renamed; `path` is as it was then.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder is in the place of the file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    _remove_abandoned(target)
    folder, lock = _new_folder(target)
    try:
        draft = folder / f"new{Path(path).suffix}"
        yield draft
        _sync_file(draft)
        with contextlib.suppress(OSError):  # as on exFAT and CIFS, which know no permissions
            draft.chmod(_mode_for(target, folder))
        os.replace(draft, target)
        with contextlib.suppress(OSError):  # the file is in its place: no reason to say it failed
            _sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new_folder(target: Path) -> tuple[Path, int]:
    """A folder that this writer alone writes in, and the lock that says so while it lives."""
    while True:
        folder = target.with_name(f"{_stem_of(target)}.{secrets.token_hex(4)}{_SUFFIX}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            lock = _locked(folder / _LOCK)
            if lock is not None:
                return folder, lock


def _stem_of(target: Path) -> str:
    """What the folders of all writers of this file begin with; no longer where its name is long."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_STEM:
        return f".{target.name}"
    return f".{hashlib.sha256(name).hexdigest()[:16]}"


def _locked(path: Path) -> int | None:
    """The descriptor of a locked file; None where another writer has just taken it for abandoned.

    The system drops the lock when the process ends, however it ends.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    _lock(lock, wait=True)
    if path.exists():  # its number of links would tell as well, but mounts may call that 0
        return lock
    os.close(lock)
    return None


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers of this path have left: folders that nobody holds the lock of."""
    for folder in target.parent.glob("*" + _SUFFIX):
        stem, _, token = folder.name.removesuffix(_SUFFIX).rpartition(".")
        if stem != _stem_of(target) or len(token) != 8:
            continue
        with contextlib.suppress(OSError):  # another writer may be removing it as well
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _lock(lock, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Take the lock; false where it is taken, or the file system has no locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _mode_for(target: Path, folder: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file has by default."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return folder.stat().st_mode & 0o666  # mkdir has applied the process's umask


def _sync_file(path: Path) -> None:
    """Have the disk hold all of a file, where the file system knows how to wait for that."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def _sync_folder(path: Path) -> None:
    """Have the disk hold the names in a folder."""
    if sys.platform != "win32":  # where a folder can't be opened
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
