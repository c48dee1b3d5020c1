"""Starting threads, and when a process must use only one.

One thread is the fallback for what a threading layer can't do: see
`rmsjit.runtime.threading_layer` for the layers and `rmsjit.runtime.forks` for the effects of a
fork.  `rmsjit.kernels.act` launches the threads, after checking the gate of `forks`.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import NamedTuple

from rmsjit.runtime import forks, threading_layer
from rmsjit.runtime.warning import warn

_STALL = 4e-3  # seconds a launch may take beyond its work: one or two scheduler ticks
_SLOWEST = 4e9  # bytes per second; every machine is faster
_STALLS = 16  # an excess of stalled over good launches that is no coincidence

_start_lock = forks.RenewedLock()
_layer: threading_layer.Layer | None = None  # set by the first parallel launch
_serial_because = ""  # why this process must not launch threads; empty if it may
_warned = False
_stalls = 0
_launchers: set[int] = set()  # the threads that have launched, some of which may have ended
_crowded = False  # whether other launchers were alive at the last fork


def layer_name() -> str:
    """The threading layer in use ("tbb", "omp" or "workqueue"), started if necessary."""
    return _started().name


class Launch(NamedTuple):
    """How kernels are run: with permission for several threads, as words of `rmsjit.kernels.act`.

    Attributes
    ----------
    threads, get_threads, set_threads : int
    prefetches : bool
        Whether dense updates fetch memory ahead.
    """

    threads: int
    get_threads: int
    set_threads: int
    prefetches: bool = False


ONE_THREAD = Launch(1, 0, 0)


@functools.lru_cache  # as steps ask for the same again and again
def _permission(
    threads: int, get_threads: int = 0, set_threads: int = 0, prefetches: bool = False
) -> Launch:
    return Launch(threads, get_threads, set_threads, prefetches)


def launch(wanted: int, prefetches: bool = False) -> Launch:
    """Permission for a launch on at most `wanted` threads, or on one if there must be no others."""
    layer = (_layer or start()) if wanted > 1 else None
    granted = 1 if layer is None or _serial_because else min(layer.get_threads(), wanted)
    if layer is None or granted <= 1:
        return _permission(1, prefetches=prefetches)
    _launchers.add(threading.get_ident())
    return _permission(granted, layer.get_address, layer.set_address, prefetches)


def prepare() -> None:
    """Start threads; warn once if there are none.

    Called before anything is written, because the user may have turned warnings into errors.
    """
    if _layer is None or _serial_because:
        start()
        if _serial_because:
            _warn_once()


def launched(seconds: float, nbytes: int) -> None:
    """Record the time of a launch that moved `nbytes`; zero if unknown."""
    if nbytes and _layer is not None and _layer.spins:
        _watch(seconds, nbytes)


def _started() -> threading_layer.Layer:
    global _layer
    with _start_lock.lock:
        if _layer is None:
            layer = threading_layer.start()
            if _may_be_inherited(layer):
                _refuse(_AFTER_FORK)
            forks.one_launch_at_a_time(layer.name == "workqueue")
            _layer = layer
    return _layer


def start() -> threading_layer.Layer | None:
    """Start the threads, on a layer of our choice if we are first; None if there are none."""
    if _serial_because:
        return None
    try:
        return _started()
    except ValueError as error:  # the user's settings require a layer that is not available
        _refuse(f"Numba can't start threads ({str(error).splitlines()[0]})")
        return None


def _may_be_inherited(layer: threading_layer.Layer) -> bool:
    """Whether a parent process may have started OpenMP before rmsjit was imported."""
    if not (layer.gnu and layer.started_before):
        return False
    if forks.is_child():
        return True
    processes = sys.modules.get("multiprocessing")
    return (
        processes is not None
        and processes.parent_process() is not None
        and processes.get_start_method(allow_none=True) in (None, "fork")
    )


def _watch(seconds: float, nbytes: int) -> None:
    """Count the launches that took far longer than their work; stop using threads if many do."""
    global _stalls
    if seconds > _STALL + nbytes / _SLOWEST:
        _stalls += 1
        if _stalls >= _STALLS:
            _refuse(
                "the spinning threads of GNU OpenMP stall on processors that others use; install "
                "tbb, or set OMP_WAIT_POLICY=passive before Python starts"
            )
    else:
        _stalls = max(0, _stalls - 1)


_AFTER_FORK = (
    "GNU OpenMP can't start threads after a fork; install tbb, or start processes with 'spawn'"
)


def _refuse(reason: str) -> None:
    global _serial_because
    _serial_because = reason


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warn(f"rmsjit runs on one thread in this process: {_serial_because}")


def _before_fork() -> None:
    global _crowded
    _launchers.intersection_update(thread.ident for thread in threading.enumerate())
    _crowded = bool(_launchers - {threading.get_ident()})


def _in_child() -> None:
    global _warned
    _warned = False
    if _layer is None or _serial_because:
        return
    if _layer.gnu:
        _refuse(_AFTER_FORK)
    elif _layer.name == "tbb" and (_crowded or _layer.starter != threading.get_ident()):
        # Numba could not shut TBB down before the fork: the child would wait for missing threads.
        _refuse("TBB was in use by another thread than the one that forked")
        threading_layer.keep_tbb_module()
    _launchers.clear()


forks.add_hooks(_before_fork, _in_child)
