"""Messages that travel while the program computes.

MPI libraries make progress only within calls of MPI.  A thread of our own makes some calls while a
message travels, and sleeps in between: each call takes time from whatever computes on the same
processor, far more than the call itself takes.  Where MPI was not started for several threads,
messages move on only when another one is added.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from rmsjit.distributed.comm import load_mpi
from rmsjit.runtime.forks import RenewedLock

_LEAST_PAUSE = 2e-4  # seconds between two calls; at 1 GB/s, 200 KB arrive meanwhile
_CALLS = 64  # while a message travels alone; beside others, a pause leaves no network idle


class Traffic:
    """Messages in the order in which all ranks start them, some of them at a time.

    Parameters
    ----------
    most : int
        How many travel at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Callable[[], Any]] = deque()
        self._travelling: deque[Any] = deque()
        self._since = 0.0  # when the first of these followed the one before, or nothing
        self._seconds = 0.0  # that the last one took from then on
        self._lock = RenewedLock()
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._error: BaseException | None = None

    def add(self, start: Callable[[], Any]) -> None:
        """Have a message started once there is room for it; `start` returns its request."""
        with self._lock.lock:
            self._waiting.append(start)
        self._advance()
        if self._thread is None and _may_use_threads():
            self._thread = threading.Thread(target=self._watch, name="rmsjit-send", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait until all messages have arrived; there can't be any further.

        Raises
        ------
        Exception
            What MPI has raised for one of them.
        """
        self._is_over.set()
        with self._lock.lock:
            while self._error is None and (self._travelling or self._waiting):
                self._start_waiting()
                self._travelling.popleft().Wait()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _watch(self) -> None:
        """Move the messages on until `finish` does."""
        try:
            while not self._is_over.wait(self._pause()):
                self._advance()
        except BaseException as error:
            self._error = error  # for `finish`

    def _pause(self) -> float:
        """How long to sleep: part of what the last message took, or of what this one has taken."""
        taken = time.perf_counter() - self._since if self._travelling else 0.0
        return max(_LEAST_PAUSE, max(self._seconds, taken) * self._most / _CALLS)

    def _advance(self) -> None:
        """Give MPI time to move messages, and start those that there is room for."""
        with self._lock.lock:
            while self._travelling and self._travelling[0].Test():
                self._travelling.popleft()
                now = time.perf_counter()
                self._seconds, self._since = now - self._since, now
            self._start_waiting()

    def _start_waiting(self) -> None:
        if self._waiting and not self._travelling:
            self._since = time.perf_counter()
        while self._waiting and len(self._travelling) < self._most:
            self._travelling.append(self._waiting.popleft()())


@cache
def _may_use_threads() -> bool:
    """Whether several threads may call MPI at the same time."""
    mpi = load_mpi()
    return bool(mpi.Query_thread() == mpi.THREAD_MULTIPLE)
