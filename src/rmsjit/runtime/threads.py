"""How many threads a step may use, and where it must not use any.

What a threading layer can't do is done by the serial kernels instead: see
`rmsjit.runtime.threading_layer` for the layers and `rmsjit.runtime.forks` for what a fork does to
them.  Threads are launched by `rmsjit.kernels.act`, which asks the gate of `forks`.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import NamedTuple

from rmsjit.runtime import forks, threading_layer
from rmsjit.runtime.warning import warn

# What one thread moves in the time that it takes to start the others, and to start them after a
# pause, in which they have gone to sleep and their caches cold.
LAUNCH_BYTES = 1 << 21
IDLE_LAUNCH_BYTES = 1 << 22
_PAUSE = 1e-3  # seconds
_STALL = 4e-3  # seconds that a launch may take beyond its work: a scheduler's tick or two
_SLOWEST = 4e9  # bytes per second that any machine moves
_STALLS = 16  # so many of them more than good launches are no chance

_start_lock = forks.RenewedLock()
_layer: threading_layer.Layer | None = None  # set by the first parallel launch
_serial_because = ""  # why this process must not launch threads, if so
_warned = False
_stalls = 0
_launchers: set[int] = set()  # the threads that have launched, and may have ended since
_last_use = float("-inf")  # when there was last work for more than one thread
_crowded = False  # whether others of them were alive at the last fork


def layer_name() -> str:
    """The threading layer in use ("tbb", "omp" or "workqueue"); starts it if need be."""
    return _started().name


def worth(limit: int, nbytes: float) -> int:
    """How many threads to use for work that moves `nbytes`: `limit`, or one."""
    global _last_use
    if not may_pay(limit, nbytes):
        return 1
    now = time.perf_counter()
    awake, _last_use = now - _last_use < _PAUSE, now
    return limit if awake or _pays(limit, nbytes, IDLE_LAUNCH_BYTES) else 1


def may_pay(limit: int, nbytes: float) -> bool:
    """Whether threads that are awake save time in work that moves `nbytes`."""
    return _pays(limit, nbytes, LAUNCH_BYTES)


def _pays(limit: int, nbytes: float, launch_bytes: int) -> bool:
    """Whether the other threads save more time than it takes to start them."""
    return limit > 1 and nbytes * (limit - 1) >= launch_bytes * limit


class Launch(NamedTuple):
    """Leave for kernels to run on several threads, as words of `rmsjit.kernels.act`."""

    threads: int
    get_threads: int
    set_threads: int


ONE_THREAD = Launch(1, 0, 0)


def launch(wanted: int) -> Launch:
    """Leave for a launch on at most `wanted` threads; on one where it must be."""
    if wanted <= 1:
        return ONE_THREAD
    layer = _layer or _start_or_refuse()
    if layer is None or _serial_because:
        return ONE_THREAD
    granted = min(layer.get_threads(), wanted)
    if granted <= 1:
        return ONE_THREAD
    _launchers.add(threading.get_ident())
    return Launch(granted, layer.get_address, layer.set_address)


def start() -> None:
    """Start the threads, if there are any to be had, on a layer of our choice if we are first."""
    _start_or_refuse()


def prepare(limit: int, nbytes: float) -> None:
    """Start threads if such work may use them, and say once where there are none.

    Called before anything is written, since a warning may be an error.
    """
    if (_layer is None or _serial_because) and may_pay(limit, nbytes):
        _start_or_refuse()
        if _serial_because:
            _warn_once()


def spins() -> bool:
    """Whether launches must be watched for stalls."""
    return _layer is not None and _layer.spins


def launched(seconds: float, nbytes: int) -> None:
    """Note that a launch that moves `nbytes` has taken so long."""
    global _last_use
    _last_use = time.perf_counter()
    if spins() and nbytes:
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


def _start_or_refuse() -> threading_layer.Layer | None:
    if _serial_because:
        return None
    try:
        return _started()
    except ValueError as error:  # no layer of the kind that the user's settings demand
        _refuse(f"Numba has no threads to offer ({str(error).splitlines()[0]})")
        return None


def _may_be_inherited(layer: threading_layer.Layer) -> bool:
    """Whether OpenMP was perhaps started by a parent of this process, before rmsjit came in."""
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
    """Count the launches that took far longer than their work, and give up when they are many."""
    global _stalls
    if seconds > _STALL + nbytes / _SLOWEST:
        _stalls += 1
        if _stalls >= _STALLS:
            _refuse(
                "the spinning threads of GNU OpenMP stall where others use the processors; install "
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
        # Numba could not shut TBB down before the fork: the child waits for threads that are gone.
        _refuse("TBB was in use by another thread than the one that forked")
        threading_layer.keep_tbb_module()
    _launchers.clear()


forks.add_hooks(_before_fork, _in_child)
