"""From a dtype and a set of slots to the compiled kernel for exactly these.

The kernels here take arguments of one fixed layout each and check nothing; `rmsjit.plan` is the
place that prepares them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import from_dtype, types

from rmsjit.dtypes import Precision
from rmsjit.kernels import arrays, dense, norms
from rmsjit.runtime.cache import compile_kernel

_INT64 = types.int64
_TABLE = types.Array(_INT64, 2, "C")
_INTEGERS = types.Array(_INT64, 1, "C")

Kernel = Callable[..., Any]


def _vector(dtype: str) -> Any:
    return types.Array(from_dtype(np.dtype(dtype)), 1, "C")


def _column(present: bool) -> Any:
    return _INT64 if present else types.none


@functools.cache
def update_dense(precision: Precision, mg: bool, momentum: bool, parallel: bool) -> Kernel:
    """The dense driver for one dtype and set of slots."""
    numbers = _vector(precision.computing)
    signature = (
        _TABLE,
        _TABLE,
        _TABLE,
        _INTEGERS,
        numbers,
        numbers,
        _vector(precision.storage),
        _column(mg),
        _column(momentum),
    )
    return compile_kernel(dense.update_dense, signature, parallel=parallel)


@functools.cache
def sums_of_squares(real: str, computing: str, parallel: bool) -> Kernel:
    """The norm driver for gradients made of `real` numbers."""
    signature = (
        _TABLE,
        _TABLE,
        _INTEGERS,
        _vector(computing),
        _vector(real),
        types.Array(types.float64, 1, "C"),
    )
    return compile_kernel(norms.sums_of_squares, signature, parallel=parallel)


@functools.cache
def read_step() -> Kernel | None:
    """The reader of object headers, or None where they are not laid out as it expects."""
    signature = (_INT64, _INT64, _TABLE, _TABLE, _TABLE)
    read = compile_kernel(arrays.read_step, signature, parallel=False)
    return read if arrays.headers_readable(read) else None
