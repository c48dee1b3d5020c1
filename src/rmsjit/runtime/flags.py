"""How everything that runs compiled is compiled."""

from typing import Any

# Python's error model checks every division for zero, which forbids vectors.
FLAGS: dict[str, Any] = {"error_model": "numpy", "nogil": True}
PARALLEL: dict[str, Any] = {**FLAGS, "parallel": True}
HOLDING_GIL: dict[str, Any] = {**FLAGS, "nogil": False}
# For parts of kernels: a call of one that is not inlined would count references, and wrappers by
# which Python or C could call it would take a fifth of the time of compiling.
INLINED: dict[str, Any] = {
    **FLAGS,
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
