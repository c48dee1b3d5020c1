"""A folder of compiled kernels, which any number of processes share.

Every kernel is one file, whose name is a hash of its identity: all that its code depends on.
Processes that race write the same content, each to a file of its own that then takes the name, so
a reader sees a whole file or none; what is torn nevertheless, as on network file systems, or spoilt
is told by a checksum.  A folder that can only be read serves as well, once filled.

``RMSJIT_CACHE_DIR`` moves the folder; ``RMSJIT_CACHE=0`` goes without one.  Where there is no home
folder that can be written, it is a private one among the temporary files.

A kernel is code, so whoever can write one can run code in every process that reads it.  Only files
in folders are read that belong to this user or root both, and that nobody else can write to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rmsjit.runtime.warning import warn

_HEAD = b"rmsjit kernel 1\n"
_SUFFIX = ".kernel"
_DIGEST_SIZE = hashlib.sha256().digest_size
_TO_LOOK = getattr(os, "O_PATH", os.O_RDONLY)  # a folder may be read by name only

_warned = False


def cache_folder() -> Path | None:
    """The folder for compiled kernels, or None where there is to be none."""
    if os.environ.get("RMSJIT_CACHE", "1").lower() in ("0", "false", "off", "no"):
        return None
    chosen = os.environ.get("RMSJIT_CACHE_DIR")
    if chosen:
        with contextlib.suppress(RuntimeError):  # no home of that name: as if none were chosen
            return Path(chosen).expanduser()
    return _default_folder()


def _default_folder() -> Path | None:
    folder = _folder_at_home()
    if folder is None or not _may_serve(folder):
        return _temporary_folder() or folder
    return folder


def _folder_at_home() -> Path | None:
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
            return Path(local) / "rmsjit"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "rmsjit"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmsjit"
    except RuntimeError:  # no home folder, as in some containers
        return None


def _may_serve(folder: Path) -> bool:
    """Whether a folder can be written, or made, or holds kernels already."""
    if folder.is_dir():
        return os.access(folder, os.W_OK | os.X_OK) or any(contents(folder))
    parent = next((parent for parent in folder.parents if parent.exists()), folder)
    return parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)


def _temporary_folder() -> Path | None:
    """A folder that belongs to this user alone, in a place where all can write."""
    if not hasattr(os, "getuid"):
        return None
    try:
        folder = Path(tempfile.gettempdir()) / f"rmsjit-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_mode & 0o077 == 0
    return folder if private and status.st_uid == os.getuid() else None


def path_for(folder: Path, name: str, identity: str) -> Path:
    """Where the kernel of this name and identity belongs."""
    return folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}{_SUFFIX}"


def read(path: Path, identity: str) -> bytes | None:
    """The content that was stored for `identity`, or None where there is none that is whole.

    Raises
    ------
    OSError
        If the file is there but can't be read, or not be trusted.
    """
    try:
        stored = _trusted_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stored is None:
        return None
    start = len(_HEAD) + _DIGEST_SIZE
    named = identity.encode() + b"\n"
    body = stored[start:]
    digest = stored[len(_HEAD) : start]
    if not stored.startswith(_HEAD) or hashlib.sha256(body).digest() != digest:
        return None
    return body[len(named) :] if body.startswith(named) else None


def _trusted_bytes(path: Path) -> bytes | None:
    """What a file holds, None where it is none but a pipe, a folder or the like.

    Owners and permissions are those of what has been opened, not of what has the name by then.
    """
    if not hasattr(os, "getuid"):
        return path.read_bytes() if path.is_file() else None
    folder = os.open(path.parent, _TO_LOOK | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_trusted(folder, path.parent)
        if not stat.S_ISREG(os.stat(path.name, dir_fd=folder).st_mode):
            return None  # even opening it may have effects
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path.name, flags, dir_fd=folder), "rb") as file:
            _check_trusted(file.fileno(), path)
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return file.read() if regular else None
    finally:
        os.close(folder)


def _check_trusted(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to user {status.st_uid}, who could run code here")
    if status.st_mode & 0o022:
        raise PermissionError(f"others can write to {path}, and so run code here: chmod go-w")


def write(path: Path, identity: str, content: bytes) -> None:
    """Store `content` for `identity`; as readable and writable by others as the folder is.

    Raises
    ------
    OSError
        If that can't be done.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    body = identity.encode() + b"\n" + content
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(_HEAD + hashlib.sha256(body).digest() + body)
        with contextlib.suppress(OSError):  # some file systems know no permissions
            os.chmod(temporary, path.parent.stat().st_mode & 0o666)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def contents(folder: Path) -> Iterator[Path]:
    """The files of kernels in `folder`, of all versions of rmsjit."""
    return folder.glob(f"*{_SUFFIX}")


def clear(folder: Path) -> int:
    """Remove all kernels, and what interrupted processes have left; the number of kernels."""
    kernels = list(contents(folder))
    for path in [*kernels, *folder.glob(".*-*")]:
        with contextlib.suppress(OSError):
            path.unlink()
    return len(kernels)


def warn_once(folder: Path | None, error: Exception) -> None:
    """Say why kernels are not kept, once in each process; None where no folder is to blame."""
    global _warned
    if not _warned:
        _warned = True
        cause = "it can't tell what they are made from"
        remedy = "set RMSJIT_CACHE=0 to silence this"
        if folder is not None:
            cause = f"the cache folder {folder} can't be used"
            remedy = (
                "set RMSJIT_CACHE_DIR to a folder of yours that can be written, or RMSJIT_CACHE=0 "
                "to silence this"
            )
        warn(
            f"rmsjit compiles kernels anew in every process, because {cause} "
            f"({type(error).__name__}: {error}); {remedy}"
        )
