"""Compiling kernels, once per machine type, into a folder that any number of processes share.

Numba keeps an index file per function, and two processes that add different signatures to one
index at once can leave it pointing at the wrong machine code.  Here every kernel has a folder of
its own, named by a hash of all that its code depends on, so an index never has two entries and
two processes that race write the same thing.  An edit of any kernel source changes every name.

``RMSJIT_CACHE_DIR`` moves the folder; ``RMSJIT_CACHE=0`` goes without one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_KERNEL_FOLDER = Path(__file__).parents[1] / "kernels"
_ENVIRONMENT_OF_CODE = (  # Numba's settings that change the code it makes
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "CPU_NAME",
    "CPU_FEATURES",
    "ENABLE_AVX",
    "DISABLE_INTEL_SVML",
    "DEBUGINFO_DEFAULT",
)

_lock = threading.RLock()
_warned = False


def cache_folder() -> Path | None:
    """The folder for compiled kernels, or None where ``RMSJIT_CACHE=0``."""
    if os.environ.get("RMSJIT_CACHE", "1").lower() in ("0", "false", "off", "no"):
        return None
    chosen = os.environ.get("RMSJIT_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return _user_cache() / "rmsjit"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home folder, as in some containers
        import tempfile

        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"


def compile_kernel(
    function: Callable[..., Any], signature: tuple[Any, ...], *, parallel: bool
) -> Callable[..., Any]:
    """Machine code of `function` for exactly one signature, from the cache where it is there.

    Parameters
    ----------
    function : callable
        A function of `rmsjit.kernels`.
    signature : tuple of Numba types
        The types of its arguments.  The result checks nothing: it must be called with these.
    parallel : bool
        Whether its ``prange`` loops run on threads.
    """
    with _lock:
        folder = _kernel_folder(function.__name__, signature, parallel)
        dispatcher = _compiled(function, signature, parallel, folder)
    entry_point: Callable[..., Any] = dispatcher.get_overload(signature)
    return entry_point


def _compiled(
    function: Callable[..., Any], signature: tuple[Any, ...], parallel: bool, folder: Path | None
) -> Any:
    from numba import njit

    flags = {"error_model": "numpy", "nogil": True, "boundscheck": False, "parallel": parallel}
    if folder is not None:
        try:
            with _numba_settings(CACHE_DIR=str(folder), CACHE_LOCATOR_CLASSES=""):
                dispatcher = njit(cache=True, **flags)(function)
                dispatcher.compile(signature)
            return dispatcher
        except Exception as error:  # a full disk, a truncated file, no leave to write: go without
            _warn_once(folder, error)
    with _numba_settings():
        dispatcher = njit(**flags)(function)
        dispatcher.compile(signature)
    return dispatcher


def _warn_once(folder: Path, error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"rmsjit compiles its kernels anew in every process, because the cache folder "
            f"{folder.parent} can't be used ({error}); set RMSJIT_CACHE_DIR to a folder that can "
            f"be written, or RMSJIT_CACHE=0 to silence this",
            RuntimeWarning,
            stacklevel=2,
        )


@contextmanager
def _numba_settings(**settings: str) -> Iterator[None]:
    """Set Numba's configuration for our own compilations and put the user's back."""
    from numba.core import config

    settings_now = {"DISABLE_JIT": 0, **settings}
    before = {name: getattr(config, name) for name in settings_now if hasattr(config, name)}
    try:
        for name in before:
            setattr(config, name, settings_now[name])
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _kernel_folder(name: str, signature: tuple[Any, ...], parallel: bool) -> Path | None:
    root = cache_folder()
    if root is None:
        return None
    identity = f"{_code_identity()}|{name}|{signature}|{parallel}"
    return root / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}"


@functools.cache
def _code_identity() -> str:
    """All that the machine code depends on beside function, signature and threads."""
    import llvmlite
    import llvmlite.binding
    import numba
    from numba.core import config

    sources = b"".join(path.read_bytes() for path in sorted(_KERNEL_FOLDER.glob("*.py")))
    parts = [
        hashlib.sha256(sources + Path(__file__).read_bytes()).hexdigest(),
        numba.__version__,
        llvmlite.__version__,
        platform.python_version(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
        *(f"{name}={getattr(config, name, None)}" for name in _ENVIRONMENT_OF_CODE),
    ]
    return "|".join(parts)
