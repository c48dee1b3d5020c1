"""Starting Numba's threads on the best layer that the user's settings allow.

Numba runs ``prange`` on one of three layers.  TBB is the best: it starts quickly, and several
Python threads may use it at once.  GNU OpenMP kills a forked child at its first parallel loop, and
its threads spin by default while they wait, which causes stalls of milliseconds on a shared core.
Numba's own workqueue aborts the process when two threads enter it.  The user's choice of layer is
never overridden.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rmsjit.runtime import numba_internals
from rmsjit.runtime.settings import changed, numba_config

_TBB_NAMES = {"linux": "libtbb.so.12", "darwin": "libtbb.12.dylib", "win32": "tbb12.dll"}
_OLDEST_TBB = 12060  # interface version; Numba refuses older ones, with a warning


class Layer(NamedTuple):
    """A started threading layer.

    Attributes
    ----------
    name : str
        "tbb", "omp" or "workqueue".
    gnu : bool
        Whether it is GNU OpenMP.
    spins : bool
        Whether its threads may wait by spinning.
    starter : int
        The thread that started it; the main thread if unknown.
    started_before : bool
        Whether something else had started it before rmsjit.
    get_threads : callable
        Numba's own number of threads for the calling thread.
    get_address, set_address : int
        Addresses of the C functions that read and set that number.
    keep_alive : object
        The functions at these addresses.
    """

    name: str
    gnu: bool
    spins: bool
    starter: int | None
    started_before: bool
    get_threads: Callable[[], int]
    get_address: int
    set_address: int
    keep_alive: object


def start() -> Layer:
    """Let Numba choose its layer, after making TBB loadable and telling OpenMP not to spin.

    Raises
    ------
    ValueError
        If the layer required by the user's settings is not available.
    """
    running = numba_internals.threads_run()
    passive = False
    if not running:
        _load_tbb()
        passive = not _loaded("libgomp")
        with _passive_openmp() as chosen, _priority_without_old_tbb(), _open_start_method():
            numba_internals.start_threads()
        passive = passive and chosen
    name: str = import_module("numba").threading_layer()
    gnu = name == "omp" and numba_internals.openmp_is_gnu()
    started_before = running is not False  # if unknown, a fork is taken for the worse case
    return Layer(
        name,
        gnu,
        gnu and not passive,
        threading.main_thread().ident if started_before else threading.get_ident(),
        started_before,
        *_thread_counts(),
    )


def _thread_counts() -> tuple[Callable[[], int], int, int, object]:
    """The functions behind ``numba.get_num_threads`` and ``set_num_threads``.

    The public functions take two locks per call, one of them shared between processes, and release
    the GIL, which can take milliseconds to acquire again.
    """
    functions = numba_internals.thread_counts()
    if functions is not None:
        get, put = map(_address, functions)
        return ctypes.PYFUNCTYPE(ctypes.c_int)(get), get, put, functions
    numba = import_module("numba")
    public = (
        ctypes.CFUNCTYPE(ctypes.c_int)(numba.get_num_threads),
        ctypes.CFUNCTYPE(None, ctypes.c_int)(numba.set_num_threads),
    )
    get, put = map(_address, public)
    return numba.get_num_threads, get, put, public


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def keep_tbb_module() -> None:
    """Keep Numba's TBB module from being freed at exit.

    In a child forked by another thread than the one that started TBB, freeing it would wait for
    threads that no longer exist.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(numba_internals.tbb_module()))


def _load_tbb() -> None:
    """Load libtbb by its full path: ``pip install tbb`` puts it where no loader searches."""
    if str(numba_config().THREADING_LAYER).lower() in ("omp", "workqueue"):
        return
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == _TBB_NAMES.get(sys.platform):
            try:
                ctypes.CDLL(str(Path(str(file.locate())).resolve()))
            except OSError:
                return  # Numba will use another layer


@contextmanager
def _priority_without_old_tbb() -> Iterator[None]:
    """Make Numba try TBB last if it is too old, since Numba would warn before trying others."""
    priority = numba_config().THREADING_LAYER_PRIORITY
    if "tbb" in priority and _tbb_version() < _OLDEST_TBB:
        priority = [*(name for name in priority if name != "tbb"), "tbb"]
    with changed(THREADING_LAYER_PRIORITY=priority):
        yield


def _tbb_version() -> int:
    """The interface version of the TBB that Numba would load; 0 if there is none."""
    try:
        library = ctypes.CDLL(_TBB_NAMES[sys.platform])
        version: int = library.TBB_runtime_interface_version()
    except (KeyError, OSError, AttributeError):
        return 0
    return version


@contextmanager
def _passive_openmp() -> Iterator[bool]:
    """Make idle OpenMP threads sleep unless the user chose otherwise; yields whether they will.

    libgomp reads the setting once, when it is loaded.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield True
    finally:
        del os.environ["OMP_WAIT_POLICY"]


@contextmanager
def _open_start_method() -> Iterator[None]:
    """Leave the start method of multiprocessing for the user to choose.

    Numba queries the method when it starts threads, which would fix it.
    """
    import multiprocessing  # small models never need it

    is_open = multiprocessing.get_start_method(allow_none=True) is None
    try:
        yield
    finally:
        if is_open:
            multiprocessing.set_start_method(None, force=True)


def _loaded(library: str) -> bool:
    """Whether the process has loaded a shared library of this name; False if unknown."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return False
    return f"/{library}.so" in maps
