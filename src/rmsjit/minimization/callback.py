"""Calling back with the point of an iteration, in either of SciPy's signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.minimization.result import result

Report = Callable[[NDArray[Any], float], bool]


def report_to(callback: Callable[..., Any] | None) -> Report:
    """A function of a point and its value that calls back, and tells whether to go on.

    As in SciPy, a callback whose only parameter is called ``intermediate_result`` gets an
    ``OptimizeResult`` with ``x`` and ``fun``, any other one a copy of the point; and it ends the
    run by raising `StopIteration`.

    Raises
    ------
    TypeError
        If it is neither callable nor None.
    """
    if callback is None:
        return lambda x, value: True
    if not callable(callback):
        raise TypeError(f"callback must be callable or None, got {callback!r}")
    takes_result = _takes_result(callback)

    def report(x: NDArray[Any], value: float) -> bool:
        try:
            if takes_result:
                callback(intermediate_result=result(x=np.array(x), fun=value))
            else:
                callback(np.array(x))
        except StopIteration:
            return False
        return True

    return report


def _takes_result(callback: Callable[..., Any]) -> bool:
    try:
        return set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except (TypeError, ValueError):  # a builtin does not tell
        return False
