"""How many threads a kernel may have, and the hazards of each threading layer.

Numba runs ``prange`` on one of three layers.  TBB is the best of them: quick to start, safe to
enter from several Python threads, safe after a fork.  GNU OpenMP kills a forked child at its first
parallel loop, and its spinning threads stall for milliseconds where a core is shared.  Numba's own
workqueue aborts the process when two threads enter it.  The user's choice of layer is never
overruled; what a layer can't do is done by the serial kernels instead.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_start_lock = threading.Lock()
_workqueue_lock = threading.Lock()
_layer: str | None = None  # set by the first parallel launch
_forked = False  # whether this process is a child that must not start OpenMP threads


def threading_layer() -> str:
    """The threading layer in use ("tbb", "omp" or "workqueue"); starts it if need be."""
    global _layer
    if _layer is None:
        with _start_lock:
            if _layer is None:
                _layer = _start_layer()
    return _layer


def acquire(wanted: int) -> int:
    """Prepare this Python thread for a launch on `wanted` threads; the number granted.

    One means that the serial kernel must be used.  Every call is followed by `release`.
    """
    if wanted <= 1 or (_forked and _refused_after_fork()):
        return 1
    layer = threading_layer()
    if layer == "workqueue" and not _workqueue_lock.acquire(blocking=False):
        return 1
    import numba

    allowed = numba.get_num_threads()
    if allowed > wanted:
        _previous.count = allowed
        numba.set_num_threads(wanted)
        return wanted
    if allowed == 1 and layer == "workqueue":
        _workqueue_lock.release()
    return allowed


def release(granted: int) -> None:
    """Undo what `acquire` did."""
    if granted <= 1:
        return
    count = _previous.count
    if count:
        import numba

        _previous.count = 0
        numba.set_num_threads(count)
    if _layer == "workqueue":
        _workqueue_lock.release()


class _Previous(threading.local):
    count = 0  # of threads that the user had set, while we use fewer


_previous = _Previous()


@functools.cache
def thread_limit() -> int:
    """The processors that this process may keep busy.

    The least of its affinity mask, its control group's quota, ``SLURM_CPUS_PER_TASK`` and
    Numba's own limit (``NUMBA_NUM_THREADS``).
    """
    from numba.core import config

    limits = [config.NUMBA_NUM_THREADS, _affinity(), _control_group_quota(), _slurm_cpus()]
    return max(1, min(limit for limit in limits if limit is not None))


def _affinity() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _slurm_cpus() -> int | None:
    text = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(text) if text.isdigit() and int(text) > 0 else None


def _control_group_quota() -> int | None:
    """Processors' worth of time that a container may use, rounded up; version 2, then 1."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" or -1: no limit
    return max(1, -(-int(quota) // int(period)))


def _start_layer() -> str:
    """Let Numba choose its layer, TBB within its reach and OpenMP told not to spin."""
    import numba
    from numba.np.ufunc import parallel

    _load_tbb()
    with _passive_openmp():
        parallel._launch_threads()
    layer: str = numba.threading_layer()
    if layer == "omp" and sys.platform == "linux":
        os.register_at_fork(after_in_child=_mark_forked)
    if layer == "workqueue":
        os.register_at_fork(after_in_child=_renew_workqueue_lock)
    return layer


def _load_tbb() -> None:
    """Load libtbb by its full path: ``pip install tbb`` leaves it where no loader looks."""
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name in ("libtbb.so.12", "libtbb.12.dylib", "tbb12.dll"):
            try:
                ctypes.CDLL(str(Path(str(file.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                return  # Numba will find another layer


@contextmanager
def _passive_openmp() -> Iterator[None]:
    """Have idle OpenMP threads sleep, unless the user has said otherwise.

    libgomp reads the setting once, when it is loaded.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def _mark_forked() -> None:
    global _forked
    _forked = True


def _renew_workqueue_lock() -> None:
    global _workqueue_lock
    _workqueue_lock = threading.Lock()  # the parent may have held it at the fork


_warned_after_fork = False


def _refused_after_fork() -> bool:
    global _warned_after_fork
    if not _warned_after_fork:
        _warned_after_fork = True
        warnings.warn(
            "rmsjit runs on one thread in this forked process, because GNU OpenMP can't start "
            "threads after a fork; install tbb, or start processes with 'spawn'",
            RuntimeWarning,
            stacklevel=2,
        )
    return True
