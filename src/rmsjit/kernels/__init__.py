"""Compiled code: the rule, the kernels that apply it, and the loader that compiles them.

All modules that use Numba's decorators are imported here, so that ``NUMBA_DISABLE_JIT`` can't turn
their functions into plain Python, which would not work.
"""

from rmsjit.runtime.settings import compilable

with compilable():
    from rmsjit.kernels import loader  # and with it every other module

__all__ = ["loader"]
