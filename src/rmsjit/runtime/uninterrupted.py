"""Writes that a signal handler can't interrupt halfway.

Python runs signal handlers, which may raise, only between the instructions of Python code.  So a
series of calls can't be interrupted if compiled code makes them and none of them runs Python code.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ATTEMPTS = 1000  # more interrupts than can arrive within a few lines

Calls = Sequence[Callable[[], Any]]


def copying(copies: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> list[Callable[[], Any]]:
    """Calls that each copy the second array of a pair into the first, which has its dtype."""
    # As plain arrays: a subclass may run Python code when it assigns.
    return [partial(operator.setitem, np.asarray(to), ..., np.asarray(of)) for to, of in copies]


def run(calls: Calls) -> None:
    """Call compiled functions that run no Python code: either all of them or none."""
    deque(map(operator.call, calls), maxlen=0)


def completed(finish: Callable[[], None], calls: Calls = ()) -> None:
    """`run` calls, then `finish`, which is Python code; raise an interrupt only after that.

    An interrupt repeats everything from the start, so the calls must be repeatable, and `finish`
    must work after it was interrupted anywhere.
    """
    interrupt: BaseException | None = None
    for _ in range(_ATTEMPTS):
        try:
            run(calls)
            finish()
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
