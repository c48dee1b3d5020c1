"""Compiling each kernel once per type of machine, or loading it from the cache.

Numba's own cache has one index per function, which concurrent processes can leave pointing at the
wrong code, and it needs all of Numba's compiler in memory before it can load anything.  Here the
result of a compilation is stored (`rmsjit.runtime.store`) under an identity with everything that
the code depends on, so editing a kernel's source never leads to stale code.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import pkgutil
import platform
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rmsjit.runtime import forks, notice, numba_internals, store, threads
from rmsjit.runtime.flags import FLAGS
from rmsjit.runtime.settings import compilable, numba_config
from rmsjit.runtime.store import cache_folder

_ROOT = Path(__file__).parents[1]
_OTHER_SOURCES = (  # that kernels depend on
    "arrays/blocks.py",
    "rule/form.py",
    "rule/numbers.py",
    "rule/slot.py",
    "rule/values.py",
    "runtime/cache.py",
    "runtime/flags.py",
    "runtime/forks.py",
    "runtime/numba_internals.py",
    "state/clock.py",
)
_SETTINGS_IN_CODE = (  # the settings of Numba that machine code depends on
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "USING_SVML",
    "DEBUGINFO_DEFAULT",
    "ENABLE_PROFILING",
)

_lock = forks.RenewedLock()
_kernels: dict[Any, tuple[Kernel, Any]] = {}  # each with what keeps its machine code alive


class Kernel(NamedTuple):
    """Machine code for one function.

    Attributes
    ----------
    call : callable
        The function for Python; it checks nothing and must be called with integers.
    address : int
        The address of the same as a C function, for other compiled code.
    """

    call: Callable[..., Any]
    address: int


def compile_kernel(
    name: str,
    key: str,
    make: Callable[[], Callable[..., Any]],
    arguments: int = 1,
    flags: Mapping[str, Any] = FLAGS,
) -> Kernel:
    """Load a kernel from the cache, or compile it and store it there.

    Parameters
    ----------
    name : str
        The name of its file in the cache.
    key : str
        Everything that `make` depends on besides the sources of rmsjit.
    make : callable
        Returns the function to compile, which takes int64 numbers and returns one; called only if
        it must be compiled.
    arguments : int
        How many numbers it takes.
    flags : mapping
        Options of Numba; see `rmsjit.runtime.flags`.
    """
    identity = (name, key, arguments, *flags.items())
    with forks.undisturbed(), _lock.lock:
        if identity not in _kernels:
            # A parallel kernel starts Numba's threads; by starting them first, we choose the layer.
            with compilable():
                if flags.get("parallel", False):
                    threads.start()
                recipe = _Recipe(make, arguments, flags)
                _kernels[identity] = _obtained(name, str(identity), recipe)
        return _kernels[identity][0]


class _Recipe(NamedTuple):
    """How a kernel is compiled; see `compile_kernel`."""

    make: Callable[[], Callable[..., Any]]
    arguments: int
    flags: Mapping[str, Any]

    def compiled(self) -> Any:
        """Numba's result."""
        from numba import int64, njit

        notice.compiling()
        signature = (int64,) * self.arguments
        dispatcher = njit(**self.flags)(self.make())
        dispatcher.compile(int64(*signature))
        return numba_internals.result_of(dispatcher, signature)

    def public(self) -> tuple[Kernel, Any]:
        """The kernel from documented functions of Numba only; its calls from Python are slower."""
        from numba import cfunc, int64

        function = cfunc(int64(*(int64,) * self.arguments), **self.flags)(self.make())
        prototype = ctypes.CFUNCTYPE if self.flags["nogil"] else ctypes.PYFUNCTYPE
        call = prototype(ctypes.c_int64, *(ctypes.c_int64,) * self.arguments)(function.address)
        return Kernel(call, function.address), function


def _obtained(name: str, key: str, recipe: _Recipe) -> tuple[Kernel, Any]:
    """The kernel, and what keeps its machine code alive."""
    place, found = _stored(name, key)
    try:
        result = recipe.compiled() if found is None else found
        kernel = Kernel(*numba_internals.entry(result)), result
    except numba_internals.MissingNameError as error:
        store.warn_once(None, error)
        return recipe.public()
    if place is not None and found is None:
        _store(*place, result)
    return kernel


def _stored(name: str, key: str) -> tuple[tuple[Path, str] | None, Any]:
    """Where a kernel is stored, with its identity, and the result that is there.

    None for the place if it can't be stored, and for the result if there is none.
    """
    folder = cache_folder()
    if folder is None:
        return None, None
    try:
        identity = _identity(key)
    except Exception as error:  # a module has neither a source nor code
        store.warn_once(None, error)
        return None, None
    try:
        path = store.path_for(folder, name, identity)
        return (path, identity), _loaded(path, identity)
    except Exception as error:  # nothing in the folder may prevent training
        store.warn_once(folder, error)
        return None, None


def _store(path: Path, identity: str, result: Any) -> None:
    try:
        store.write(path, identity, numba_internals.packed(result))
    except Exception as error:  # such as a full disk or a read-only folder
        store.warn_once(path.parent, error)


def _loaded(path: Path, identity: str) -> Any:
    """The stored result, or None if there is none."""
    content = store.read(path, identity)
    return None if content is None else numba_internals.unpacked(content)


def _identity(key: str) -> str:
    """Everything that the machine code depends on."""
    machine = numba_internals.machine()
    config = numba_config()
    settings = [f"{name}={getattr(config, name, None)}" for name in _SETTINGS_IN_CODE]
    return "|".join(map(str, (key, _digest_of_sources(), _versions(), *machine, *settings)))


@functools.cache
def _digest_of_sources() -> str:
    """A digest of the sources that kernels depend on."""
    spec = importlib.util.find_spec("rmsjit.kernels")
    folders = spec.submodule_search_locations if spec else None
    names = sorted(f"kernels/{module.name}.py" for module in pkgutil.iter_modules(folders or []))
    if not names:
        raise ImportError("no kernels are in the package")
    paths = ["kernels/__init__.py", *names, *_OTHER_SOURCES]
    return hashlib.sha256(b"".join(map(_content_of, paths))).hexdigest()


def _content_of(name: str) -> bytes:
    """A source file, or its code in a program without sources (zipped, frozen, .pyc only)."""
    path = _ROOT / name
    if path.is_file():
        return path.read_bytes()
    module = "rmsjit." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    spec = importlib.util.find_spec(module)
    get_code = getattr(spec and spec.loader, "get_code", None)
    code = get_code and get_code(module)
    if code is None:
        raise ImportError(f"there is neither a source nor code of {module}")
    return repr(_described(code)).encode()


def _described(value: Any) -> Any:
    """A code object as a tuple of everything that its behaviour depends on."""
    if isinstance(value, types.CodeType):
        parts = (value.co_consts, value.co_names, value.co_varnames, value.co_freevars)
        numbers = value.co_argcount, value.co_kwonlyargcount, value.co_flags
        return value.co_name, value.co_code, numbers, *map(_described, parts)
    if isinstance(value, tuple):
        return tuple(map(_described, value))
    if isinstance(value, frozenset):  # whose order differs from process to process
        return sorted(map(repr, value))
    return value


@functools.cache
def _versions() -> str:
    import llvmlite
    import numba

    python = f"{platform.python_version()}{getattr(sys, 'abiflags', '')}"
    return f"{numba.__version__}|{llvmlite.__version__}|{python}"
