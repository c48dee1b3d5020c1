"""The options of Numba for all compiled code."""

from typing import Any

# Python's error model checks every division for zero, which prevents vectorisation.
FLAGS: dict[str, Any] = {"error_model": "numpy", "nogil": True}
PARALLEL: dict[str, Any] = {**FLAGS, "parallel": True}
HOLDING_GIL: dict[str, Any] = {**FLAGS, "nogil": False}
# For functions that kernels call.  Without inlining, calls would count references; without these
# wrappers, by which Python or C could call them, compiling takes a fifth less time.
INLINED: dict[str, Any] = {
    **FLAGS,
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
