"""Fork safety.

A forked child has its parent's memory but only one of its threads.  A lock held by another thread
is never released, and compiled code that another thread was running stays half done: TBB has
deadlocked in a child forked during a launch.  So a fork waits until no other thread is within
`undisturbed`, which guards every compilation and the import of Numba, and until no launch is in
flight, which compiled code counts in the `gate`.  A launch takes milliseconds, a compilation up to
seconds.  A fork can't wait for locks held while user code may run; these are `RenewedLock`.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

_PATIENCE = 30.0  # seconds; a fork proceeds after waiting this long
_POLL = 0.0002

# The gate of launches, read and written by compiled code (`kernels.act`): the number in flight,
# whether a fork is pending, whether only one launch may run at a time, and whether one does.
IN_FLIGHT, FORKING, EXCLUSIVE, BUSY = range(4)
gate = np.zeros(4, np.int64)

_busy: dict[int, int] = {}  # the nesting depth of `undisturbed` in each thread
_forking: set[int] = set()  # the threads that are about to fork
_is_child = False
_hooks: list[tuple[Callable[[], None], Callable[[], None]]] = []


class RenewedLock:
    """A reentrant lock that is free in a forked child even if another thread held it in the parent.

    Attributes
    ----------
    lock : threading.RLock
        Use it directly in a ``with`` statement, so that no signal can arrive between acquiring the
        lock and entering the block that releases it.
    """

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        _locks.add(self)

    def renew(self) -> None:
        """Replace the lock unless it is free or held by the current thread."""
        if self.lock.acquire(blocking=False):
            self.lock.release()
        else:
            self.lock = threading.RLock()


_locks: weakref.WeakSet[RenewedLock] = weakref.WeakSet()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep other threads from forking within the block; first wait for pending forks."""
    me = threading.get_ident()
    depth = _busy.get(me, 0)
    try:
        try:
            _busy[me] = depth + 1
            while _forking and not depth and not _forking <= {me}:
                del _busy[me]
                time.sleep(_POLL)
                _busy[me] = 1
            yield
        finally:  # whatever was interrupted above
            _put_back(me, depth)
    finally:  # in case the inner block was interrupted
        _put_back(me, depth)


@contextmanager
def importing() -> Iterator[None]:
    """Keep other threads from forking while the block imports Numba, or what imports it.

    The lock of a module that a thread is importing would stay held in a child.
    """
    with undisturbed():
        _wait_before_logging()
        yield


@functools.cache
def _wait_before_logging() -> None:
    """Let forks wait for other threads before they take the lock of logging, which Numba needs.

    Hooks are called in the opposite order of their registration, and `logging` has one.
    """
    import logging  # noqa: F401

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_wait)


def _put_back(thread: int, depth: int) -> None:
    if depth:
        _busy[thread] = depth
    else:
        _busy.pop(thread, None)


def one_launch_at_a_time(only_one: bool) -> None:
    """Set whether a launch is refused while another is in flight."""
    gate[EXCLUSIVE] = only_one


def is_child() -> bool:
    """Whether this process was forked after rmsjit had been imported."""
    return _is_child


def add_hooks(before: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Call `before` before each fork, after waiting for other threads; `in_child` in the child."""
    _hooks.append((before, in_child))


def _before() -> None:
    _wait()
    for before, _ in _hooks:
        before()


def _wait() -> None:
    """Wait until no other thread is within `undisturbed` and no launch is in flight."""
    me = threading.get_ident()
    _forking.add(me)  # before reading `_busy`: `undisturbed` does it in the opposite order
    _close_or_open_gate()
    deadline = time.monotonic() + _PATIENCE
    while _others_busy(me) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _others_busy(me: int) -> bool:
    return bool(gate[IN_FLIGHT]) or any(thread != me for thread in tuple(_busy))


def _close_or_open_gate() -> None:
    """Close the gate while any fork is pending; several threads may change `_forking` at once."""
    while bool(gate[FORKING]) != bool(_forking):
        gate[FORKING] = bool(_forking)


def _in_parent() -> None:
    _forking.discard(threading.get_ident())
    _close_or_open_gate()


def _in_child() -> None:
    global _is_child
    _is_child = True
    _forking.clear()
    gate[[IN_FLIGHT, FORKING, BUSY]] = 0
    me = threading.get_ident()
    for thread in tuple(_busy):
        if thread != me:
            del _busy[thread]
    for lock in tuple(_locks):
        lock.renew()
    for _, in_child in _hooks:
        in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
