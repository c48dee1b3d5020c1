"""Contiguous copies of arrays that kernels can't read in place, in the dtype that they read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.arrays.layout import address_of
from rmsjit.arrays.recycled import RecycledMemory
from rmsjit.kernels import converting, loader
from rmsjit.runtime.trials import LEAST_BYTES
from rmsjit.steps.act import Call
from rmsjit.steps.running import Runner

_COPIES_PER_TURN = 256  # so several lists of variables may be updated in turn
_RUN = 2048  # elements of a row, of a vector that is cut into rows

Array = NDArray[Any]


class ContiguousCopies:
    """Makes copies on threads, in memory that is used again.

    Parameters
    ----------
    num_threads : int or None
        The maximum number of threads; None for as many as the process may keep busy.
    """

    def __init__(self, num_threads: int | None) -> None:
        self._runner = Runner("copy", num_threads)
        self._memory = RecycledMemory()
        self._copies = 0

    def of(self, array: Array, dtype: np.dtype[Any]) -> Array:
        """A C-contiguous copy in a dtype; a number too large for it becomes infinite."""
        names = _storage(array.dtype), _storage(dtype)
        nbytes = array.size * dtype.itemsize
        if nbytes < LEAST_BYTES or not array.flags.aligned or not _are_convertible(*names):
            with np.errstate(all="ignore"):
                return array.astype(dtype, order="C")
        self._copies += 1
        if self._copies % _COPIES_PER_TURN == 0:
            self._memory.turn()
        result = self._memory.array(array.size, dtype).reshape(array.shape)
        self._runner.run(lambda bins: _calls(array, result, names, bins), nbytes)
        return result


def _storage(dtype: np.dtype[Any]) -> str:
    """The type of the numbers of a dtype in memory; empty if kernels have none."""
    precision = precision_of(dtype)
    return "" if precision is None else precision.storage


def _are_convertible(source: str, target: str) -> bool:
    """Whether the kernel converts as NumPy does, which rounds once."""
    if not source or not target or source.startswith("c") != target.startswith("c"):
        return False
    return source != "float64" or target in ("float32", "float64")


def _calls(array: Array, result: Array, names: tuple[str, str], bins: int) -> list[Call]:
    """The calls that copy an array to a contiguous one of the same shape."""
    shape, strides = _joined(array)
    if len(shape) > 1:
        return [_call(array, result, names, bins, shape, strides)]
    ((count,), (stride,)) = shape, strides
    rows, rest = divmod(count, _RUN)
    calls = [_call(array, result, names, bins, (rows, _RUN), (_RUN * stride, stride))]
    if rest:
        ends = array.reshape(-1)[count - rest :], result.reshape(-1)[count - rest :]
        calls.append(_call(*ends, names, 1, (1, rest), (0, stride)))
    return calls


def _call(
    array: Array,
    result: Array,
    names: tuple[str, str],
    bins: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Call:
    targets = [result.itemsize * math.prod(shape[k + 1 :]) for k in range(len(shape))]
    *others, last = range(len(shape))
    row = min(others, key=lambda axis: (abs(strides[axis]), -axis))
    outer = [axis for axis in others[::-1] if axis != row]
    axes = np.array([(shape[a], strides[a], targets[a]) for a in outer], np.int64).reshape(-1, 3)
    words = np.zeros(converting.WORDS, np.int64)
    words[converting.BINS] = bins
    words[converting.SOURCE], words[converting.TARGET] = address_of(array), address_of(result)
    words[converting.ROWS], words[converting.ROW_SOURCE] = shape[row], strides[row]
    words[converting.ROW_TARGET], words[converting.COLUMNS] = targets[row], shape[last]
    words[converting.COLUMN_SOURCE], words[converting.OUTER] = strides[last], len(outer)
    words[converting.AXES], words[converting.SLABS] = address_of(axes), math.prod(axes[:, 0])
    return Call(loader.convert(*names), words, (array, result, axes))


def _joined(array: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides, with axes joined that are one in memory; at least one axis."""
    joined: list[tuple[int, int]] = []
    for length, stride in zip(array.shape, array.strides, strict=True):
        if length == 1:
            continue
        if joined and joined[-1][1] == length * stride:
            joined[-1] = joined[-1][0] * length, stride
        else:
            joined.append((length, stride))
    shape, strides = zip(*(joined or [(1, array.itemsize)]), strict=True)
    return shape, strides
