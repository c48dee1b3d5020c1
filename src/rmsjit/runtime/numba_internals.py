"""All private names of Numba that rmsjit uses, and what it does where a version lacks one.

All were checked with the versions of `CHECKED`.  Everywhere else rmsjit uses what Numba documents:
`njit`, `cfunc`, `prange`, `types`, `numba.config` and `numba.extending`.

- `STORING`: without one of these, kernels can't be kept in the cache.  They are compiled in every
  process, and a warning says so.  Numba's own cache (``njit(cache=True)``) does not take their
  place: it can't recognise functions that are made from other functions, and it mixes up serial
  and parallel versions of one function.
- `CALLING`: without one of these, kernels are also compiled by the public `numba.cfunc`, which
  takes a microsecond longer for each call.  The warning says that, too.
- `THREADING`: without one of these, rmsjit uses slower public functions or makes the careful
  assumption; `rmsjit.runtime.threading_layer` says which.
- `OBSERVING`: without one of these, compilations are not counted.

`missing` lists those that the installed version lacks; ``python -m rmsjit info`` shows them.

The options ``forceinline``, ``no_cpython_wrapper`` and ``no_cfunc_wrapper`` of `njit`
(`rmsjit.runtime.flags`) are not documented either.  If a version refuses one, its error names it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple


class PrivateName(NamedTuple):
    """A private name of Numba.

    Attributes
    ----------
    module : str
    name : str
        With the class, for an attribute of one; empty for the module itself.
    reason : str
        What it is needed for.
    """

    module: str
    name: str
    reason: str


CHECKED = ("0.61.2", "0.68.1")  # the oldest and the newest version of Numba

STORING = (
    PrivateName(
        "numba.core.compiler", "CompileResult._reduce", "a compiled function as plain data"
    ),
    PrivateName("numba.core.compiler", "CompileResult.lifted", "loops that were compiled apart"),
    PrivateName("numba.core.compiler", "CompileResult._rebuild", "a function from this data"),
    PrivateName("numba.core.serialize", "dumps", "pickles this data, which may hold functions"),
    PrivateName(
        "numba.core.codegen", "CodeLibrary.has_dynamic_globals", "whether code has addresses in it"
    ),
    PrivateName("numba.core.compiler_lock", "global_compiler_lock", "Numba's lock around LLVM"),
    PrivateName("numba.core.registry", "cpu_target", "the target that code is loaded for"),
    PrivateName("numba.core.registry", "CPUTarget.target_context", "what loads the code"),
    PrivateName("numba.core.cpu", "CPUContext.codegen", "what compiled code is made by"),
    PrivateName(
        "numba.core.codegen", "CPUCodegen.magic_tuple", "the processor that code is compiled for"
    ),
    PrivateName(
        "numba.core.runtime._nrt_python", "c_helpers", "C functions that compiled code may call"
    ),
)
CALLING = (
    PrivateName("numba.core.dispatcher", "Dispatcher.overloads", "what was compiled"),
    PrivateName("numba.core.compiler", "CompileResult.library", "the code"),
    PrivateName("numba.core.compiler", "CompileResult.fndesc", "the names in the code"),
    PrivateName(
        "numba.core.codegen", "JITCodeLibrary.get_pointer_to_function", "an address in the code"
    ),
    PrivateName(
        "numba.core.funcdesc",
        "FunctionDescriptor.llvm_cfunc_wrapper_name",
        "the name of the C function in the code",
    ),
    PrivateName(
        "numba.core.compiler", "CompileResult.entry_point", "the function, called without checks"
    ),
)
THREADING = (
    PrivateName("numba.np.ufunc.parallel", "_is_initialized", "whether threads run already"),
    PrivateName("numba.np.ufunc.parallel", "_launch_threads", "starts threads"),
    PrivateName("numba.np.ufunc.parallel", "_get_num_threads", "called from compiled code"),
    PrivateName("numba.np.ufunc.parallel", "_set_num_threads", "called from compiled code"),
    PrivateName("numba.np.ufunc.omppool", "openmp_vendor", "whether OpenMP is GNU's"),
    PrivateName("numba.np.ufunc.tbbpool", "", "kept in a child that can't shut TBB down"),
    PrivateName("numba.core.config", "reload_config", "reads the environment again"),
    PrivateName("numba.core.config", "_env_reloader", "remembers the environment"),
)
OBSERVING = (
    PrivateName("numba.core.event", "install_recorder", "reports compilations"),
    PrivateName("numba.core.event", "RecordingListener.buffer", "what it has told"),
)
_MADE_LATER = (  # on instances, or when threads start
    "Dispatcher.overloads",
    "RecordingListener.buffer",
    "_get_num_threads",
    "_set_num_threads",
)


class MissingNameError(RuntimeError):
    """This version of Numba lacks a private name; `lost` says what rmsjit does instead."""

    def __init__(self, message: str, lost: str) -> None:
        super().__init__(message)
        self.lost = lost


_COMPILES_AGAIN = "compiles its kernels again in every process"
_CALLS_SLOWER = f"{_COMPILES_AGAIN} and takes a microsecond longer to call one"


@contextmanager
def _required(lost: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, ImportError) as error:
        import numba

        raise MissingNameError(f"Numba {numba.__version__} has changed: {error}", lost) from error


def missing() -> list[PrivateName]:
    """The names that the installed Numba lacks, but for those that it makes only when it runs.

    `numba.np.ufunc.omppool` and `tbbpool` are not on every platform, and do not count.
    """
    every = (*STORING, *CALLING, *THREADING, *OBSERVING)
    return [private for private in every if not _is_there(private)]


def _is_there(private: PrivateName) -> bool:
    if private.name in _MADE_LATER or private.module.endswith("pool"):
        return True
    try:
        value = import_module(private.module)
        for part in filter(None, private.name.split(".")):
            value = getattr(value, part)
    except (AttributeError, ImportError):
        return False
    return True


def result_of(dispatcher: Any, signature: tuple[Any, ...]) -> Any:
    """What `dispatcher`, a jitted function, has compiled for the types of its arguments.

    Raises
    ------
    MissingNameError
    """
    with _required(_CALLS_SLOWER):
        return dispatcher.overloads[signature]


def packed(result: Any) -> bytes:
    """A compiled function as bytes.

    Raises
    ------
    MissingNameError
    ValueError
        If its code holds addresses of this process.
    """
    with _required(_COMPILES_AGAIN):
        movable = not (result.lifted or result.library.has_dynamic_globals)
        data = result._reduce() if movable else None
        dumps = import_module("numba.core.serialize").dumps
    if not movable:
        raise ValueError("the code holds addresses of this process")
    content: bytes = dumps(data)
    return content


def unpacked(content: bytes) -> Any:
    """The compiled function of `packed`.

    Numba's runtime is not started, which would compile functions that are part of this code
    already, and take longer than all else at the first step of a process.

    Raises
    ------
    MissingNameError
    """
    with _required(_COMPILES_AGAIN):
        rebuild = import_module("numba.core.compiler").CompileResult._rebuild
        lock = import_module("numba.core.compiler_lock").global_compiler_lock
        context = import_module("numba.core.registry").cpu_target.target_context
        helpers = import_module("numba.core.runtime._nrt_python").c_helpers
    with lock:
        _name_helpers(helpers)
        return rebuild(context, *pickle.loads(content))


def _name_helpers(helpers: dict[str, int]) -> None:
    """Tell LLVM the addresses of Numba's C functions, by the names that compiled code has."""
    from llvmlite import binding

    for name, address in helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def machine() -> tuple[Any, ...]:
    """The processor and its features, for which Numba compiles.

    Raises
    ------
    MissingNameError
    """
    with _required(_COMPILES_AGAIN):
        context = import_module("numba.core.registry").cpu_target.target_context
        found: tuple[Any, ...] = context.codegen().magic_tuple()
    return found


def entry(result: Any) -> tuple[Any, int]:
    """A compiled function for Python, which checks nothing, and the address of the C function.

    Raises
    ------
    MissingNameError
    """
    with _required(_CALLS_SLOWER):
        address = result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name)
        return result.entry_point, address


def threads_run() -> bool | None:
    """Whether Numba has started its threads; None if unknown."""
    return getattr(import_module("numba.np.ufunc.parallel"), "_is_initialized", None)


def start_threads() -> None:
    """Start Numba's threads, on the layer that the user's settings lead to."""
    import numba

    start = getattr(import_module("numba.np.ufunc.parallel"), "_launch_threads", None)
    (start or numba.get_num_threads)()


def thread_counts() -> tuple[Any, Any] | None:
    """The C functions that get and set the number of threads of a thread; None if gone."""
    parallel = import_module("numba.np.ufunc.parallel")
    try:
        return parallel._get_num_threads, parallel._set_num_threads
    except AttributeError:
        return None


def openmp_is_gnu() -> bool:
    """Whether Numba's OpenMP is GNU's, also if unknown: the others have fewer faults."""
    try:
        vendor: str = import_module("numba.np.ufunc.omppool").openmp_vendor
    except (AttributeError, ImportError):
        return True
    return vendor == "GNU"


def tbb_module() -> Any:
    """Numba's module for TBB, or None."""
    try:
        return import_module("numba.np.ufunc.tbbpool")
    except ImportError:
        return None


def reload_settings() -> None:
    """Read Numba's settings from the environment again, as its compiler does when it starts.

    Once its threads run, Numba refuses to change their number, and then reads no setting at all.
    Then the settings stay as they are, also for the compiler.
    """
    config = import_module("numba.core.config")
    reload_config = getattr(config, "reload_config", None)
    if reload_config is None:
        return
    try:
        reload_config()
    except RuntimeError:
        reloader = getattr(config, "_env_reloader", None)
        if reloader is None:
            raise
        own = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
        reloader.old_environ = own


@contextmanager
def compilations() -> Iterator[list[Any]]:
    """The names of what Numba compiles within the block; empty if it does not report it."""
    try:
        install_recorder = import_module("numba.core.event").install_recorder
    except (AttributeError, ImportError):
        yield []
        return
    with install_recorder("numba:compile") as recorder:
        yield getattr(recorder, "buffer", [])
