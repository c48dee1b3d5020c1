"""A folder of compiled kernels that any number of processes share.

Each kernel is one file, named by a hash of its identity: everything its code depends on.  Racing
processes write the same content, each to a temporary file that is then renamed, so a reader sees a
complete file or none.  A checksum detects files that are nevertheless truncated (as on network file
systems) or corrupted.  Once filled, a read-only folder works as well.

``RMSJIT_CACHE_DIR`` sets the folder; ``RMSJIT_CACHE=0`` disables it.  Without a writable home
folder, the cache is a private folder in the system's folder for temporary files.

A kernel is code, so anyone who can write one can run code in every process that reads it.  A kernel
is read only if both its file and its folder belong to this user or root and nobody else can write
to them.
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

from rmsjit.runtime.numba_internals import CHECKED, MissingNameError
from rmsjit.runtime.warning import warn

_HEAD = b"rmsjit kernel 1\n"
_SUFFIX = ".kernel"
LEARNED_FILE = "learned.json"  # beside the kernels; see `rmsjit.runtime.learned`
_DIGEST_SIZE = hashlib.sha256().digest_size
_TO_LOOK = getattr(os, "O_PATH", os.O_RDONLY)  # enough where listing the folder is not permitted

_warned = False


def cache_folder() -> Path | None:
    """The folder for compiled kernels, or None if the cache is disabled or has no place."""
    if os.environ.get("RMSJIT_CACHE", "1").lower() in ("0", "false", "off", "no"):
        return None
    chosen = os.environ.get("RMSJIT_CACHE_DIR")
    if chosen:
        with contextlib.suppress(RuntimeError):  # no home of that name: use the default
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
    """Whether a folder is writable, can be created, or already contains kernels."""
    if folder.is_dir():
        return os.access(folder, os.W_OK | os.X_OK) or any(contents(folder))
    parent = next((parent for parent in folder.parents if parent.exists()), folder)
    return parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)


def _temporary_folder() -> Path | None:
    """A private folder of this user in the system's folder for temporary files."""
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
    """The path of the kernel with this name and identity."""
    return folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}{_SUFFIX}"


def read(path: Path, identity: str) -> bytes | None:
    """The content stored for `identity`, or None if there is no intact file.

    Raises
    ------
    OSError
        If the file exists but can't be read or trusted.
    """
    try:
        stored = trusted_bytes(path)
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


def trusted_bytes(path: Path) -> bytes | None:
    """The content of a regular file; None if it is a pipe, a folder or the like.

    Owner and permissions are checked on open descriptors, since the path may change meanwhile.

    Raises
    ------
    OSError
        If there is no such file, or it can't be read or trusted.
    """
    if not hasattr(os, "getuid"):
        return path.read_bytes() if path.is_file() else None
    folder = os.open(path.parent, _TO_LOOK | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_trusted(folder, path.parent)
        if not stat.S_ISREG(os.stat(path.name, dir_fd=folder).st_mode):
            return None  # even opening it may have side effects
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
    """Store `content` for `identity`; see `replace`.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    body = identity.encode() + b"\n" + content
    replace(path, _HEAD + hashlib.sha256(body).digest() + body)


def replace(path: Path, content: bytes) -> None:
    """Write a whole file, as readable and writable for others as the folder.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        with contextlib.suppress(OSError):  # some file systems have no permissions
            os.chmod(temporary, path.parent.stat().st_mode & 0o666)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def contents(folder: Path) -> Iterator[Path]:
    """The kernel files of all versions of rmsjit in `folder`."""
    return folder.glob(f"*{_SUFFIX}")


def clear(folder: Path) -> int:
    """Remove all that rmsjit has written there; return the number of kernels."""
    kernels = list(contents(folder))
    for path in [*kernels, folder / LEARNED_FILE, *folder.glob(".*-*")]:
        with contextlib.suppress(OSError):
            path.unlink()
    return len(kernels)


def warn_once(folder: Path | None, error: Exception) -> None:
    """Warn once per process why kernels are not cached; `folder` is None if it is not at fault."""
    global _warned
    if not _warned:
        _warned = True
        if isinstance(error, MissingNameError):
            oldest, newest = CHECKED
            warn(f"rmsjit {error.lost} because {error}; it was checked with {oldest} to {newest}")
            return
        cause = "it can't determine their sources"
        remedy = "set RMSJIT_CACHE=0 to silence this warning"
        if folder is not None:
            cause = f"the cache folder {folder} can't be used"
            remedy = (
                "set RMSJIT_CACHE_DIR to a writable folder of your own, or RMSJIT_CACHE=0 to "
                "silence this warning"
            )
        warn(
            f"rmsjit compiles its kernels again in every process because {cause} "
            f"({type(error).__name__}: {error}); {remedy}"
        )
