"""Messages that travel while the program computes.

MPI libraries move a message on only within calls of MPI, so somebody has to call.  A thread of our
own does that, a few thousand times a second, and sleeps in between, so that it takes little of
the processors' time.  Where MPI was not started for several threads, only the calls that add
messages do it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from rmsjit.distributed.comm import load_mpi
from rmsjit.runtime.forks import RenewedLock

_PAUSE = 2e-4  # seconds between two calls; at 1 GB/s, 200 KB arrive meanwhile


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
            while not self._is_over.wait(_PAUSE):
                self._advance()
        except BaseException as error:
            self._error = error  # for `finish`

    def _advance(self) -> None:
        """Give MPI time to move messages, and start those that there is room for."""
        with self._lock.lock:
            while self._travelling and self._travelling[0].Test():
                self._travelling.popleft()
            self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._travelling) < self._most:
            self._travelling.append(self._waiting.popleft()())


@cache
def _may_use_threads() -> bool:
    """Whether several threads may call MPI at the same time."""
    mpi = load_mpi()
    return bool(mpi.Query_thread() == mpi.THREAD_MULTIPLE)
