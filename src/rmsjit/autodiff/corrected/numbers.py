"""Functions of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.autodiff.autograd_names import anp, getval
from rmsjit.autodiff.corrected.arguments import Function
from rmsjit.autodiff.corrected.broadcasting import where


def _sinc(x: Any) -> Any:
    """autograd divides by the argument, which may be zero."""
    at_zero = getval(x) == 0
    if not np.any(at_zero):
        return anp.sinc(x)
    # The series is exact at zero, with its derivatives.
    squared = (np.pi * where(at_zero, x, 0.0)) ** 2
    series = 1 - squared / 6 + squared**2 / 120
    return where(at_zero, series, anp.sinc(where(at_zero, 1.0, x)))


def power(base: Any, exponent: Any) -> Any:
    """``base ** exponent``; autograd computes with the exponent, which may be a list."""
    if isinstance(exponent, (list, tuple)):
        exponent = np.asarray(exponent)
    return anp.power(base, exponent)


VERSIONS: dict[Any, Function] = {np.sinc: _sinc}
