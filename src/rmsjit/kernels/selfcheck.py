"""Trying a kernel that came from the cache on a few elements, against NumPy.

Each function here belongs to the loader of the same name: its first arguments are that loader's,
its last is the kernel, and it says whether the kernel computes what it should.  The numbers are
exact in every dtype, and enough of them to fill vectors and leave a rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.kernels import dense
from rmsjit.kernels.rule import RuleNumbers

Kernel = Callable[..., Any]
Array = NDArray[Any]

_COUNT = 45
_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}  # a wrong rule is off by far more
_FACTOR = 0.5
_CLIP = 1.25


def update_dense(precision: Precision, mg: bool, momentum: bool, kernel: Kernel) -> bool:
    state, g = (
        _state(precision, mg, momentum, _COUNT),
        _stored(precision.storage, _wave(_COUNT, 11)),
    )
    expected = _updated(precision, state, _clipped(precision, g) * _FACTOR)
    half = _COUNT // 2
    _called(
        kernel,
        _table(state),
        np.array([[_address(g)]]),
        np.array([[0, 0, half], [0, half, _COUNT - half]]),
        np.array([0, 1, 2]),
        np.array([_FACTOR], precision.computing),
        _numbers(precision),
        np.empty(0, precision.storage),
        dense.MG if mg else None,
        dense.MOMENTUM if momentum else None,
    )
    return _agree(precision, state, expected)


def update_rows(
    precision: Precision, mg: bool, momentum: bool, clock: bool, kernel: Kernel
) -> bool:
    rows, width = 3, _COUNT // 3
    state = _state(precision, mg, momentum, _COUNT)
    g = _stored(precision.storage, _wave(_COUNT, 11))
    first, second, third = (_clipped(precision, g) * _FACTOR).reshape(rows, width)
    before = {name: _values(array) for name, array in state.items()}
    gradient = np.concatenate([second, np.zeros_like(first), first + third])
    expected = _updated(precision, state, gradient)
    for name, array in expected.items():
        array[width : 2 * width] = before[name][width : 2 * width]  # a row that is not named
    done = np.zeros(rows, np.uint16) if clock else None
    total = precision.storage if precision.parts == 2 else precision.computing
    _called(
        kernel,
        _table(state),
        np.array([[_address(g)]]),
        np.array([2, 0, 2]),
        np.array([0, 2, 3], np.int32),
        np.array([0, 2, 1], np.int32),
        2,
        width,
        np.empty(3, np.int64),
        np.empty((2, width), total),
        np.array([_FACTOR], precision.computing),
        _numbers(precision),
        np.empty(0, precision.storage),
        dense.MG if mg else None,
        dense.MOMENTUM if momentum else None,
        done,
        np.array([[1], [1], [0]], precision.computing) if clock else None,
        1,
    )
    ticked = done is None or done.tolist() == [1, 0, 1]
    return ticked and _agree(precision, state, expected)


def catch_up_rows(precision: Precision, mg: bool, momentum: bool, kernel: Kernel) -> bool:
    state = _state(precision, mg, momentum, _COUNT)
    expected = {name: _values(array) for name, array in state.items()}
    decay, carry, drift = 0.25, 0.5, 0.75
    expected["rms"] *= decay
    if mg:
        expected["mg"] *= decay
    if momentum:
        expected["variable"] -= drift * expected["momentum"]
        expected["momentum"] *= carry
    done = np.zeros(1, np.uint16)
    _called(
        kernel,
        _table(state),
        np.array([0]),
        _COUNT,
        np.empty(0, precision.storage),
        dense.MG if mg else None,
        dense.MOMENTUM if momentum else None,
        done,
        np.array([[decay], [carry], [drift]], precision.computing),
        1,
    )
    return done[0] == 1 and _agree(precision, state, expected)


def sums_of_squares(real: str, computing: str, kernel: Kernel) -> bool:
    g = _stored(real, _wave(_COUNT, 11))
    squares = np.clip(_values(g), -_CLIP, _CLIP) ** 2
    half = _COUNT // 2
    totals = np.empty((2, 1))
    _called(
        kernel,
        np.array([[_address(g)]]),
        np.array([[0, 0, half], [0, half, _COUNT - half]]),
        np.array([0, 1, 2]),
        np.array([_CLIP], computing),
        np.empty(0, real),
        np.empty((2, 2)),
        totals,
    )
    return np.array_equal(totals, [[squares.sum()], [0.0]])  # quarters squared are exact


def first_outside(kernel: Kernel) -> bool:
    found = [
        _called(kernel, np.array(indices), 3) for indices in ([2, 0, 1], [2, 3, 0], [1, 2, -1])
    ]
    return found == [-1, 1, 2]


def find_rows(kernel: Kernel) -> bool:
    numbers = np.zeros(4, np.int32)
    order, starts = np.empty(5, np.int32), np.empty(6, np.int32)
    count = _called(kernel, np.array([3, 1, 3, 0, 3]), numbers, starts, order)
    return (
        count == 3
        and not numbers.any()
        and starts[:4].tolist() == [0, 3, 4, 5]
        and order.tolist() == [0, 2, 4, 1, 3]
    )


def copy_parts(kernel: Kernel) -> bool:
    first, second = np.arange(200, dtype=np.uint8), np.arange(9, dtype=np.uint8)
    packed = np.zeros(110, np.uint8)
    addresses = np.array([[_address(first)], [_address(second)]])
    parts, sample = np.array([[0, 1, 100], [1, 2, 5]]), np.empty(0, np.uint8)
    _called(kernel, addresses, parts, _address(packed), False, sample)
    expected = [*range(1, 101), *range(2, 7)]
    if packed[:106].tolist() != [*expected, 0]:
        return False
    first[:], second[:] = 0, 0
    _called(kernel, addresses, parts, _address(packed), True, sample)
    return [*first[1:101].tolist(), *second[2:7].tolist(), *first[101:]] == [*expected, *[0] * 99]


def _called(kernel: Kernel, *arguments: Any) -> Any:
    """What the kernel returns; None where it fails, and then what it should write is not there."""
    try:
        return kernel(*arguments)
    except Exception:  # such as that of a kernel for other types
        return None


# --- the same in NumPy ----------------------------------------------------------------------


def _wave(count: int, period: int) -> Array:
    """Quarters, positive and negative."""
    return (np.arange(count) % period - period // 2) / 4


def _state(precision: Precision, mg: bool, momentum: bool, count: int) -> dict[str, Array]:
    values = {"variable": _wave(count, 13), "rms": 2 + np.abs(_wave(count, 7))}
    if mg:
        values["mg"] = _wave(count, 5)
    if momentum:
        values["momentum"] = _wave(count, 3)
    return {name: _stored(precision.storage, value) for name, value in values.items()}


def _numbers(precision: Precision) -> Array:
    largest = float(np.finfo(precision.computing).max)  # for every bound that is not to be met
    numbers = dict.fromkeys(RuleNumbers._fields, largest) | {
        "lr": 0.5,
        "rho": 0.75,
        "one_minus_rho": 0.25,
        "momentum": 0.5,
        "eps_root": 0.5,
        "eps": 0.25,
        "clipvalue": np.inf if precision.parts == 2 else _CLIP,
    }
    return np.array(RuleNumbers(**numbers), precision.computing)


def _updated(precision: Precision, state: dict[str, Array], g: Array) -> dict[str, Array]:
    """The rule, of which `rmsjit.kernels.rule` says more, in float64."""
    h = RuleNumbers(*_numbers(precision).tolist())
    new = {name: _values(array) for name, array in state.items()}
    new["rms"] = h.rho * new["rms"] + h.one_minus_rho * g * g
    variance = new["rms"]
    if "mg" in new:
        new["mg"] = h.rho * new["mg"] + h.one_minus_rho * g
        variance = variance - new["mg"] ** 2
    step = h.lr * g / (np.sqrt(variance + h.eps_root) + h.eps)
    if "momentum" in new:
        step = new["momentum"] = h.momentum * new["momentum"] + step
    new["variable"] = new["variable"] - step
    return new


def _clipped(precision: Precision, stored: Array) -> Array:
    values = _values(stored)
    return values if precision.parts == 2 else np.clip(values, -_CLIP, _CLIP)


def _agree(precision: Precision, state: dict[str, Array], expected: dict[str, Array]) -> bool:
    tolerance = _TOLERANCES.get(precision.name, 1e-5)
    return all(
        np.allclose(_values(state[name]), expected[name], tolerance, tolerance) for name in expected
    )


# --- in memory ------------------------------------------------------------------------------


def _stored(storage: str, values: Array) -> Array:
    """Real `values` as kernels see them; complex ones get an imaginary part."""
    if storage == "uint16":
        return values.astype(np.float16).view(np.uint16)
    if storage == "int16":
        return (values.astype(np.float32).view(np.int32) >> 16).astype(np.int16)
    return values.astype(storage) * (1 + 0.5j if "complex" in storage else 1)


def _values(stored: Array) -> Array:
    if stored.dtype == np.uint16:
        return stored.view(np.float16).astype(np.float64)
    if stored.dtype == np.int16:
        return (stored.astype(np.int32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.complex128 if stored.dtype.kind == "c" else np.float64)


def _table(state: dict[str, Array]) -> NDArray[np.int64]:
    columns = {
        "variable": dense.VARIABLE,
        "rms": dense.RMS,
        "mg": dense.MG,
        "momentum": dense.MOMENTUM,
    }
    table = np.zeros((1, dense.TABLE_COLUMNS), np.int64)
    for name, array in state.items():
        table[0, columns[name]] = _address(array)
    return table


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
