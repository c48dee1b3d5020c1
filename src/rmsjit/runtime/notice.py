"""A line on the terminal before kernels are compiled, which takes seconds."""

from __future__ import annotations

import os
import sys

_QUIET = "RMSJIT_QUIET"
_TEXT = (
    "rmsjit: compiling kernels for the first time; later runs read them from a cache "
    f"({_QUIET}=1 hides this line)"
)

_told = False


def compiling() -> None:
    """Tell the user once in a process, if standard error is a terminal."""
    global _told
    if _told or os.environ.get(_QUIET, "0") not in ("", "0") or not _on_terminal():
        return
    _told = True
    print(_TEXT, file=sys.stderr, flush=True)


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
