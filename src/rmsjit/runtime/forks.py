"""What a fork must not break.

A forked child has all the memory of its parent but only one of its threads.  A lock that another
thread held is held for ever, and compiled code that another thread was in stays half done: TBB was
seen to deadlock in a child that was forked during a launch.  So a fork waits until no other thread
is within `undisturbed`, which guards every compilation and every launch; that takes milliseconds.
Locks that user code may run under can't be waited for; they are `RenewedLock`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

_PATIENCE = 30.0  # seconds; a fork that has waited for so long goes on all the same
_POLL = 0.0002

_busy: dict[int, int] = {}  # how deep each thread is within `undisturbed`
_forking: set[int] = set()  # the threads that are about to fork
_is_child = False
_hooks: list[tuple[Callable[[], None], Callable[[], None]]] = []


class RenewedLock(AbstractContextManager[None, None]):
    """A reentrant lock that a forked child finds free, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Replace the lock unless it is free or held by this very thread."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_locks: weakref.WeakSet[RenewedLock] = weakref.WeakSet()


def enter(*, wait: bool) -> bool:
    """Begin what a fork by another thread must not interrupt; every success needs a `leave`.

    While another thread is about to fork it waits, or returns False without `wait`.
    """
    me = threading.get_ident()
    depth = _busy.get(me, 0)
    _busy[me] = depth + 1
    while _forking and not depth and not _forking <= {me}:
        del _busy[me]
        if not wait:
            return False
        time.sleep(_POLL)
        _busy[me] = 1
    return True


def leave() -> None:
    """End what `enter` began."""
    me = threading.get_ident()
    depth = _busy[me] - 1
    if depth:
        _busy[me] = depth
    else:
        del _busy[me]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep other threads from forking meanwhile."""
    enter(wait=True)
    try:
        yield
    finally:
        leave()


def is_child() -> bool:
    """Whether this process was forked after rmsjit had been imported."""
    return _is_child


def add_hooks(before: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Call `before` ahead of every fork, when nothing is disturbed, and `in_child` in its child."""
    _hooks.append((before, in_child))


def _before() -> None:
    me = threading.get_ident()
    _forking.add(me)  # before the look at who is busy: `enter` does it the other way round
    deadline = time.monotonic() + _PATIENCE
    while any(thread != me for thread in tuple(_busy)) and time.monotonic() < deadline:
        time.sleep(_POLL)
    for before, _ in _hooks:
        before()


def _in_parent() -> None:
    _forking.discard(threading.get_ident())


def _in_child() -> None:
    global _is_child
    _is_child = True
    _forking.clear()
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
