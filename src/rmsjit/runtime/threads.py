"""Leave for a kernel to run on several threads, where that is safe, and how many.

What a threading layer can't do is done by the serial kernels instead: see `rmsjit.runtime.threading_layer`
for the layers and `rmsjit.runtime.forks` for what a fork does to them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rmsjit.runtime import forks
from rmsjit.runtime import threading_layer as layers
from rmsjit.runtime.processors import thread_limit
from rmsjit.runtime.warning import warn

__all__ = [
    "acquire",
    "may_pay",
    "prepare",
    "release",
    "thread_limit",
    "threading_layer",
    "trial",
    "worth",
]

# What one thread moves in the time that it takes to start the others, and to start them after a
# pause, in which they have gone to sleep and their caches cold.
LAUNCH_BYTES = 1 << 21
IDLE_LAUNCH_BYTES = 1 << 22
_PAUSE = 1e-3  # seconds
_STALL = 4e-3  # seconds that a launch may take beyond its work: a scheduler's tick or two
_SLOWEST = 4e9  # bytes per second that any machine moves
_STALLS = 16  # so many of them more than good launches are no chance

_start_lock = forks.RenewedLock()
_workqueue_lock = threading.RLock()
_layer: layers.Layer | None = None  # set by the first parallel launch
_serial_because = ""  # why this process must not launch threads, if so
_warned = False
_stalls = 0
_launchers: set[int] = set()  # the threads that have launched, and may have ended since
_last_use = float("-inf")  # when there was last work for more than one thread
_crowded = False  # whether others of them were alive at the last fork


def threading_layer() -> str:
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


def acquire(wanted: int, nbytes: int = 0) -> int:
    """Prepare this Python thread for a launch on `wanted` threads; the number granted.

    One means that the serial kernel must be used.  Every call is followed by `release`.

    Parameters
    ----------
    wanted : int
    nbytes : int, optional
        The memory that the kernel moves, by which stalls are told from work.
    """
    if wanted <= 1:
        return 1
    layer = _layer or _start_or_refuse()
    if layer is None or _serial_because or not forks.enter(wait=False):
        return 1  # it must be, or another thread is about to fork
    allowed = layer.get_threads()
    granted = min(allowed, wanted)
    if granted <= 1 or (layer.name == "workqueue" and not _workqueue_lock.acquire(blocking=False)):
        forks.leave()
        return 1
    _launchers.add(threading.get_ident())
    if granted < allowed:
        _mine.allowed = allowed
        layer.set_threads(granted)
    if layer.spins:
        _mine.started = time.perf_counter()
        _mine.nbytes = nbytes
    return granted


def prepare(limit: int, nbytes: float) -> None:
    """Start threads if such work may use them, and say once where there are none.

    Called before anything is written, since a warning may be an error.
    """
    if (_layer is None or _serial_because) and may_pay(limit, nbytes):
        _start_or_refuse()
        if _serial_because:
            _warn_once()


def release(granted: int) -> None:
    """Undo what `acquire` did."""
    global _last_use
    if granted <= 1 or _layer is None:
        return
    _last_use = time.perf_counter()
    if _mine.allowed:
        _layer.set_threads(_mine.allowed)
        _mine.allowed = 0
    if _layer.name == "workqueue":
        _workqueue_lock.release()
    forks.leave()
    if _layer.spins and _mine.nbytes:
        _watch(_last_use - _mine.started, _mine.nbytes)


@contextmanager
def trial() -> Iterator[bool]:
    """Leave for one short launch on any number of threads, if there is; also between the above."""
    layer = _layer or _start_or_refuse()
    if layer is None or _serial_because or not forks.enter(wait=False):
        yield False
        return
    workqueue = layer.name == "workqueue"
    allowed = not workqueue or _workqueue_lock.acquire(blocking=False)
    try:
        yield allowed
    finally:
        if workqueue and allowed:
            _workqueue_lock.release()
        forks.leave()


class _Mine(threading.local):
    allowed = 0  # threads that the user had set for this one, while we use fewer
    started = 0.0  # when it last had leave
    nbytes = 0


_mine = _Mine()


def _started() -> layers.Layer:
    global _layer
    with _start_lock:
        if _layer is None:
            layer = layers.start()
            if _may_be_inherited(layer):
                _refuse(_AFTER_FORK)
            _layer = layer
    return _layer


def _start_or_refuse() -> layers.Layer | None:
    if _serial_because:
        return None
    try:
        return _started()
    except ValueError as error:  # no layer of the kind that the user's settings demand
        _refuse(f"Numba has no threads to offer ({str(error).splitlines()[0]})")
        return None


def _may_be_inherited(layer: layers.Layer) -> bool:
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
    global _warned, _workqueue_lock
    _warned = False
    _workqueue_lock = threading.RLock()
    if _layer is None or _serial_because:
        return
    if _layer.gnu:
        _refuse(_AFTER_FORK)
    elif _layer.name == "tbb" and (_crowded or _layer.starter != threading.get_ident()):
        # Numba could not shut TBB down before the fork: the child waits for threads that are gone.
        _refuse("TBB was in use by another thread than the one that forked")
        layers.keep_tbb_module()
    _launchers.clear()


forks.add_hooks(_before_fork, _in_child)
