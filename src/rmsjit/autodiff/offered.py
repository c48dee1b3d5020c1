"""The names of automatic differentiation that `rmsjit` offers, whether autograd is there or not.

So ``from rmsjit import *``, ``help(rmsjit)`` and ``hasattr`` work without it.
"""

try:
    from rmsjit.autodiff.gather import gather
    from rmsjit.autodiff.tape import GradientTape
except ImportError:
    from rmsjit.autodiff.without_autograd import GradientTape, gather

__all__ = ["GradientTape", "gather"]
