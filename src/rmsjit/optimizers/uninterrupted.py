"""Writes that a signal finds either not begun or done.

Python runs the handlers of signals, which may raise, between the instructions of Python code and
nowhere else.  So a series of calls that compiled code makes one after the other, none of which runs
Python code itself, can't be interrupted.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ATTEMPTS = 1000  # more than handlers can be called within a few lines

Calls = Sequence[Callable[[], Any]]


def copying(copies: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> list[Callable[[], Any]]:
    """Calls, each of which copies an array (second) to another (first) of its dtype."""
    # As plain arrays: a subclass may assign by Python code.
    return [partial(operator.setitem, np.asarray(to), ..., np.asarray(of)) for to, of in copies]


def run(calls: Calls) -> None:
    """Make calls of compiled functions that run no Python code, all of them or none."""
    deque(map(operator.call, calls), maxlen=0)


def completed(calls: Calls, finish: Callable[[], None]) -> None:
    """Make calls as `run` does and then finish, in Python; an interrupt is raised after that.

    Parameters
    ----------
    calls : sequence of callable
        May be made more than once.
    finish : callable
        May be called more than once, after having been interrupted anywhere.
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
