"""All that rmsjit uses of the autograd package, which only tapes and `gather` need.

autograd 1.8 lacks the table of NumPy functions and the dispatch of ufuncs that 1.9 has; both are
made up for here, because PennyLane and others require an autograd below 1.9.  Before 1.8, autograd
imports a part of NumPy that NumPy 2 has renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import autograd.numpy as anp
    from autograd import tracer
    from autograd.core import VJPNode, add_outgrads, primitive_vjps, sparse_object_types
    from autograd.extend import defjvp, defvjp, primitive, vspace
    from autograd.numpy.numpy_boxes import ArrayBox
    from autograd.numpy.numpy_vjps import untake
    from autograd.numpy.numpy_vspaces import ArrayVSpace
    from autograd.tracer import Box, Node, getval, isbox, new_box, notrace_primitives
    from autograd.util import subvals
except ImportError as error:
    raise ImportError(
        f"GradientTape, gather, minimize of a function and optimize without jac need the package "
        f'autograd ({error}): pip install "autograd>=1.8", or rmsjit with its extra [autograd]'
    ) from error

__all__ = [
    "ArrayBox",
    "ArrayVSpace",
    "Box",
    "Node",
    "VJPNode",
    "add_outgrads",
    "anp",
    "call_ufunc",
    "defjvp",
    "defvjp",
    "getval",
    "isbox",
    "new_box",
    "notrace_primitives",
    "primitive",
    "primitive_vjps",
    "recordable",
    "sparse_object_types",
    "subvals",
    "untake",
    "vspace",
]

_HAS_DISPATCH = hasattr(ArrayBox, "__array_ufunc__")


def _recordable_functions() -> dict[Any, Callable[..., Any]]:
    """autograd's version of each function that it wraps."""
    if _HAS_DISPATCH:
        return tracer.trace_primitives_map  # type: ignore[no-any-return]
    namespaces = map(vars, (anp, anp.linalg, anp.fft))
    functions = (value for names in namespaces for value in names.values())
    versions = [function for function in functions if hasattr(function, "fun")]
    versions.sort(key=primitive_vjps.__contains__)  # 1.8 has no derivatives of aliases, as np.atan2
    return {function.fun: function for function in versions}


_RECORDABLE = _recordable_functions()


def recordable(function: Any) -> Callable[..., Any] | None:
    """The version of a NumPy function that autograd can differentiate; None if it has none."""
    return _RECORDABLE.get(function)


def call_ufunc(
    box: ArrayBox, ufunc: Any, method: str, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The result of ``ufunc.method(*inputs, **options)``, as `box.__array_ufunc__` is asked for it.

    NotImplemented if autograd can't record it.
    """
    if _HAS_DISPATCH:
        return ArrayBox.__array_ufunc__(box, ufunc, method, *inputs, **options)
    version = recordable(ufunc)
    if method != "__call__" or "out" in options or version is None:
        return NotImplemented
    return version(*inputs, **options)
