"""What runs compiled: the rule, the kernels that apply it, and the loader that compiles them.

All modules that Numba's decorators appear in are imported here, in one place, so that a user's
``NUMBA_DISABLE_JIT`` can't turn their functions into plain Python, which they are not written for.
"""

from rmsjit.runtime.settings import compilable

with compilable():
    from rmsjit.kernels import (
        act,
        copies,
        dense,
        driver,
        headers,
        norms,
        rows,
        rule,
        scalars,
        views,
    )

__all__ = [
    "act",
    "copies",
    "dense",
    "driver",
    "headers",
    "norms",
    "rows",
    "rule",
    "scalars",
    "views",
]
