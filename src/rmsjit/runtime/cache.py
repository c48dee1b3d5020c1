"""Compiling kernels once per machine type, or loading them from the cache.

Numba's own cache has one index per function, which processes can leave pointing at the wrong code,
and it needs all of Numba's compiler in memory before it loads anything.  Here the result of a
compilation is stored whole (`rmsjit.runtime.store`) under an identity that holds everything the
code depends on, so an edit of any kernel source never meets stale code.  What is loaded runs its
check once before it is used.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rmsjit.runtime import forks, store, threads
from rmsjit.runtime.settings import compilable, numba_config
from rmsjit.runtime.store import cache_folder
from rmsjit.runtime.warning import warn

Kernel = Callable[..., Any]

_KERNEL_FOLDER = Path(__file__).parents[1] / "kernels"
_SETTINGS_IN_CODE = (  # those of Numba that change the code it makes
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "USING_SVML",
    "DEBUGINFO_DEFAULT",
    "ENABLE_PROFILING",
)

_lock = forks.RenewedLock()
_results: dict[Any, Any] = {}  # what has been compiled or loaded; keeps the machine code alive


def compile_kernel(
    function: Kernel,
    signature: tuple[Any, ...],
    *,
    parallel: bool,
    check: Callable[[Kernel], bool] | None = None,
) -> Kernel:
    """Machine code of `function` for exactly one signature, from the cache where it is there.

    Parameters
    ----------
    function : callable
        A function of `rmsjit.kernels`.
    signature : tuple of Numba types
        The types of its arguments.  The result checks nothing: it must be called with these.
    parallel : bool
        Whether its ``prange`` loops run on threads.
    check : callable, optional
        Runs what was loaded on a few elements; False if the result is wrong.
    """
    key = (function, signature, parallel)
    with forks.undisturbed(), _lock:
        if key not in _results:
            # A parallel kernel starts Numba's threads, on a layer of our choice if we are first.
            with compilable(), threads.trial() if parallel else nullcontext(True) as may_run:
                _results[key] = _obtain(function, signature, parallel, check if may_run else None)
        entry_point: Kernel = _results[key].entry_point
    return entry_point


def _obtain(
    function: Kernel,
    signature: tuple[Any, ...],
    parallel: bool,
    check: Callable[[Kernel], bool] | None,
) -> Any:
    folder = cache_folder()
    if folder is None:
        return _compiled(function, signature, parallel)
    try:
        identity = _identity(function, signature, parallel)
        path = store.path_for(folder, function.__name__, identity)
        result = _loaded(path, identity)
    except Exception as error:  # whatever the folder holds, it must not keep anybody from training
        store.warn_once(folder, error)
        return _compiled(function, signature, parallel)
    if result is not None:
        if check is None or check(result.entry_point):
            return result
        warn(f"the compiled kernel {path} gave wrong results; rmsjit has compiled it anew")
    result = _compiled(function, signature, parallel)
    try:
        store.write(path, identity, _packed(result))
    except Exception as error:  # a full disk, a folder that can only be read
        store.warn_once(folder, error)
    return result


def _compiled(function: Kernel, signature: tuple[Any, ...], parallel: bool) -> Any:
    from numba import njit

    flags: dict[str, Any] = {"error_model": "numpy", "nogil": True, "parallel": parallel}
    dispatcher = njit(**flags)(function)
    dispatcher.compile(signature)
    return dispatcher.overloads[signature]


def _packed(result: Any) -> bytes:
    from numba.core import serialize

    if result.lifted or result.library.has_dynamic_globals:
        raise ValueError(f"{result.fndesc.qualname} can't be stored")
    dumps: Callable[..., bytes] = serialize.dumps
    return dumps(result._reduce())


def _loaded(path: Path, identity: str) -> Any:
    """The stored result, or None where there is none.

    Only as much of Numba is set up as machine code needs to run, which is a fifth of the time that
    it takes to get the compiler ready.
    """
    content = store.read(path, identity)
    if content is None:
        return None
    from numba.core.compiler import CompileResult
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target
    from numba.core.runtime.nrt import rtsys

    rebuild: Callable[..., Any] = CompileResult._rebuild
    context = cpu_target.target_context
    with global_compiler_lock:
        rtsys.initialize(context)
        return rebuild(context, *pickle.loads(content))


def _identity(function: Kernel, signature: tuple[Any, ...], parallel: bool) -> str:
    """All that the machine code depends on."""
    from numba.core.registry import cpu_target

    sources = _digest_of_sources(Path(function.__code__.co_filename))
    machine = cpu_target.target_context.codegen().magic_tuple()
    config = numba_config()
    settings = [f"{name}={getattr(config, name, None)}" for name in _SETTINGS_IN_CODE]
    parts = [function.__qualname__, signature, parallel, sources, _versions(), *machine, *settings]
    return "|".join(map(str, parts))


@functools.cache
def _digest_of_sources(file: Path) -> str:
    """Of all kernels, of this module and of the function's own file."""
    kernels = sorted(_KERNEL_FOLDER.glob("*.py"))
    if not kernels:
        raise FileNotFoundError(f"no kernel sources in {_KERNEL_FOLDER}")
    paths = [*kernels, Path(__file__), file]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@functools.cache
def _versions() -> str:
    import llvmlite
    import numba

    python = f"{platform.python_version()}{getattr(sys, 'abiflags', '')}"
    return f"{numba.__version__}|{llvmlite.__version__}|{python}"
