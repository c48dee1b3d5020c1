"""What runs compiled: the rule, its drivers, and the loader that compiles them.

All modules that Numba's decorators appear in are imported here, in one place, so that a user's
``NUMBA_DISABLE_JIT`` can't turn their functions into plain Python, which they are not written for.
"""

from rmsjit.runtime.settings import compilable

with compilable():
    from rmsjit.kernels import copies, dense, headers, norms, rows, rule, scalars, views

__all__ = ["copies", "dense", "headers", "norms", "rows", "rule", "scalars", "views"]
