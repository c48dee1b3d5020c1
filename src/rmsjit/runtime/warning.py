"""Warnings that point to the user's own code."""

from __future__ import annotations

import sys
import warnings

_OURS = __name__.partition(".")[0], "contextlib"  # which ends our blocks


def warn(message: str) -> None:
    """Issue a `RuntimeWarning` that points to the first caller outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame = frame.f_back
        level += 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
