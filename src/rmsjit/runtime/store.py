"""A folder of compiled kernels, which any number of processes share.

Every kernel is one file, whose name is a hash of its identity: all that its code depends on.
Processes that race write the same content, each to a file of its own that then takes the name, so
a reader sees a whole file or none; what is torn nevertheless, as on network file systems, or spoilt
is told by a checksum.  A folder that can only be read serves as well, once filled.

``RMSJIT_CACHE_DIR`` moves the folder; ``RMSJIT_CACHE=0`` goes without one.  Whoever can write to
the folder can run code in every process that reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rmsjit.runtime.warning import warn

_HEAD = b"rmsjit kernel 1\n"
_SUFFIX = ".kernel"
_DIGEST_SIZE = hashlib.sha256().digest_size

_warned = False


def cache_folder() -> Path | None:
    """The folder for compiled kernels, or None where there is to be none."""
    if os.environ.get("RMSJIT_CACHE", "1").lower() in ("0", "false", "off", "no"):
        return None
    chosen = os.environ.get("RMSJIT_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return _default_folder()


def _default_folder() -> Path | None:
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
            return Path(local) / "rmsjit"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "rmsjit"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmsjit"
    except RuntimeError:  # no home folder, as in some containers
        return _temporary_folder() if hasattr(os, "getuid") else None


def _temporary_folder() -> Path | None:
    """A folder that belongs to this user alone, in a place where all can write."""
    folder = Path(tempfile.gettempdir()) / f"rmsjit-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    return folder if status.st_uid == os.getuid() and status.st_mode & 0o077 == 0 else None


def path_for(folder: Path, name: str, identity: str) -> Path:
    """Where the kernel of this name and identity belongs."""
    return folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}{_SUFFIX}"


def read(path: Path, identity: str) -> bytes | None:
    """The content that was stored for `identity`, or None where there is none that is whole.

    Raises
    ------
    OSError
        If the file is there but can't be read.
    """
    try:
        stored = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    start = len(_HEAD) + _DIGEST_SIZE
    named = identity.encode() + b"\n"
    body = stored[start:]
    digest = stored[len(_HEAD) : start]
    if not stored.startswith(_HEAD) or hashlib.sha256(body).digest() != digest:
        return None
    return body[len(named) :] if body.startswith(named) else None


def write(path: Path, identity: str, content: bytes) -> None:
    """Store `content` for `identity`; as readable and writable by others as the folder is.

    Raises
    ------
    OSError
        If that can't be done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    body = identity.encode() + b"\n" + content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(_HEAD + hashlib.sha256(body).digest() + body)
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


def warn_once(folder: Path, error: Exception) -> None:
    """Say that the folder is of no use, once in each process."""
    global _warned
    if not _warned:
        _warned = True
        warn(
            f"rmsjit compiles kernels anew in every process, because the cache folder {folder} "
            f"can't be used ({type(error).__name__}: {error}); set RMSJIT_CACHE_DIR to a folder "
            f"that can be written, or RMSJIT_CACHE=0 to silence this"
        )
