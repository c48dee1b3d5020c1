"""From a dtype and a set of slots to the compiled kernel for exactly these.

The kernels here take arguments of one fixed layout each and check nothing; `rmsjit.steps.plan`
is the place that prepares them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import from_dtype, types

from rmsjit.arrays.dtypes import Precision
from rmsjit.kernels import copies, dense, headers, norms, rows, selfcheck
from rmsjit.runtime.cache import compile_kernel

_INT64 = types.int64
_TABLE = types.Array(_INT64, 2, "C")
_INTEGERS = types.Array(_INT64, 1, "C")
_POSITIONS = types.Array(types.int32, 1, "C")

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
    check = functools.partial(selfcheck.update_dense, precision, mg, momentum)
    return compile_kernel(dense.update_dense, signature, parallel=parallel, check=check)


@functools.cache
def update_rows(
    precision: Precision, mg: bool, momentum: bool, clock: bool, parallel: bool
) -> Kernel:
    """The sparse driver for one dtype and set of slots, with or without a clock."""
    numbers = _vector(precision.computing)
    total = precision.storage if precision.parts == 2 else precision.computing
    signature = (
        _TABLE,
        _TABLE,
        _INTEGERS,
        _POSITIONS,
        _POSITIONS,
        _INT64,
        _INT64,
        _INTEGERS,
        types.Array(from_dtype(np.dtype(total)), 2, "C"),
        numbers,
        numbers,
        _vector(precision.storage),
        _column(mg),
        _column(momentum),
        *_clock_types(precision, clock),
    )
    check = functools.partial(selfcheck.update_rows, precision, mg, momentum, clock)
    return compile_kernel(rows.update_rows, signature, parallel=parallel, check=check)


@functools.cache
def catch_up_rows(precision: Precision, mg: bool, momentum: bool, parallel: bool) -> Kernel:
    """The driver that brings rows to the last step."""
    signature = (
        _TABLE,
        _INTEGERS,
        _INT64,
        _vector(precision.storage),
        _column(mg),
        _column(momentum),
        *_clock_types(precision, present=True),
    )
    check = functools.partial(selfcheck.catch_up_rows, precision, mg, momentum)
    return compile_kernel(rows.catch_up_rows, signature, parallel=parallel, check=check)


def _clock_types(precision: Precision, present: bool) -> tuple[Any, Any, Any]:
    if not present:
        return types.none, types.none, _INT64
    lapses = types.Array(from_dtype(np.dtype(precision.computing)), 2, "C")
    return types.Array(types.uint16, 1, "C"), lapses, _INT64


@functools.cache
def first_outside() -> Kernel:
    """The check of row indices."""
    return compile_kernel(
        rows.first_outside, (_INTEGERS, _INT64), parallel=False, check=selfcheck.first_outside
    )


@functools.cache
def find_rows() -> Kernel:
    """The search for the occurrences of each row."""
    signature = (_INTEGERS, _POSITIONS, _POSITIONS, _POSITIONS)
    return compile_kernel(rows.find_rows, signature, parallel=False, check=selfcheck.find_rows)


@functools.cache
def copy_parts() -> Kernel:
    """The copier of parts of arrays."""
    signature = (_TABLE, _TABLE, _INT64, types.boolean, _vector("uint8"))
    return compile_kernel(copies.copy_parts, signature, parallel=False, check=selfcheck.copy_parts)


@functools.cache
def sums_of_squares(real: str, computing: str, parallel: bool) -> Kernel:
    """The norm driver for gradients made of `real` numbers."""
    signature = (
        _TABLE,
        _TABLE,
        _INTEGERS,
        _vector(computing),
        _vector(real),
        types.Array(types.float64, 2, "C"),
        types.Array(types.float64, 2, "C"),
    )
    check = functools.partial(selfcheck.sums_of_squares, real, computing)
    return compile_kernel(norms.sums_of_squares, signature, parallel=parallel, check=check)


@functools.cache
def read_step() -> Kernel | None:
    """The reader of object headers, or None where they are not laid out as it expects."""
    signature = (_INT64, _INT64, _TABLE, _TABLE, _TABLE)
    check = headers.headers_readable
    read = compile_kernel(headers.read_step, signature, parallel=False, check=check)
    return read if check(read) else None
