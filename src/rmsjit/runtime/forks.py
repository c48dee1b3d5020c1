"""What a fork must not break.

A forked child has all the memory of its parent but only one of its threads.  A lock that another
thread held is held for ever, and compiled code that another thread was in stays half done: TBB was
seen to deadlock in a child that was forked during a launch.  So a fork waits until no other thread
is within `undisturbed`, which guards every compilation, and no launch is under way, which compiled
code counts in the `gate`.  A launch takes milliseconds, a compilation up to seconds.  Locks that
user code may run under can't be waited for; they are `RenewedLock`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

_PATIENCE = 30.0  # seconds; a fork that has waited for so long goes on all the same
_POLL = 0.0002

# The gate of launches: how many are under way, whether a fork is about to come, whether there may
# be one at a time only, and whether there is.  Compiled code reads and writes it (`kernels.act`).
gate = np.zeros(4, np.int64)
_IN_FLIGHT, _FORKING, _EXCLUSIVE, _BUSY = range(4)

_busy: dict[int, int] = {}  # how deep each thread is within `undisturbed`
_forking: set[int] = set()  # the threads that are about to fork
_is_child = False
_hooks: list[tuple[Callable[[], None], Callable[[], None]]] = []


class RenewedLock:
    """A reentrant lock that a forked child finds free, whoever held it in the parent.

    Attributes
    ----------
    lock : threading.RLock
        To be used in a ``with`` statement, where no signal can come between taking the lock and
        the block that gives it back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _locks.add(self)

    def renew(self) -> None:
        """Replace the lock unless it is free or held by this very thread."""
        if self.lock.acquire(blocking=False):
            self.lock.release()
        else:
            self.lock = threading.RLock()


_locks: weakref.WeakSet[RenewedLock] = weakref.WeakSet()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep other threads from forking meanwhile; wait while one is about to."""
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
        finally:  # whatever has been interrupted above
            _put_back(me, depth)
    finally:  # and that as well
        _put_back(me, depth)


def _put_back(thread: int, depth: int) -> None:
    if depth:
        _busy[thread] = depth
    else:
        _busy.pop(thread, None)


def one_launch_at_a_time(only_one: bool) -> None:
    """Whether launches must wait for each other, or do without threads."""
    gate[_EXCLUSIVE] = only_one


def is_child() -> bool:
    """Whether this process was forked after rmsjit had been imported."""
    return _is_child


def add_hooks(before: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Call `before` ahead of every fork, when nothing is disturbed, and `in_child` in its child."""
    _hooks.append((before, in_child))


def _before() -> None:
    me = threading.get_ident()
    _forking.add(me)  # before the look at who is busy: they do it the other way round
    _close_or_open_gate()
    deadline = time.monotonic() + _PATIENCE
    while _others_busy(me) and time.monotonic() < deadline:
        time.sleep(_POLL)
    for before, _ in _hooks:
        before()


def _others_busy(me: int) -> bool:
    return bool(gate[_IN_FLIGHT]) or any(thread != me for thread in tuple(_busy))


def _close_or_open_gate() -> None:
    """Close the gate while any thread is about to fork; several may come and go at once."""
    while bool(gate[_FORKING]) != bool(_forking):
        gate[_FORKING] = bool(_forking)


def _in_parent() -> None:
    _forking.discard(threading.get_ident())
    _close_or_open_gate()


def _in_child() -> None:
    global _is_child
    _is_child = True
    _forking.clear()
    gate[[_IN_FLIGHT, _FORKING, _BUSY]] = 0
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
