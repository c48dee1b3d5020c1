"""The memory of an array, whatever view of it one holds.

A variable is its memory: ``W``, ``W[...]``, ``W.T`` and ``W.reshape(-1)`` are views of the same
elements, and the optimizer's state belongs to these.  So every array is turned to one canonical
view, its axes by descending stride and all strides positive, in which slots are laid out and
kernels run.  For a C- or F-contiguous array that view is simply its elements in memory order.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """How an array's axes lie in memory.

    Attributes
    ----------
    axes : tuple of int
        The array's axes by descending stride.
    flips : tuple of slice
        For each of these, ``slice(None, None, -1)`` where its stride is negative; empty for a
        C-contiguous array, whose canonical view is itself.
    """

    axes: tuple[int, ...]
    flips: tuple[Any, ...]

    def canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """The view of `array`, which has the shape that this layout was made for."""
        if not self.flips:
            return array
        return array.transpose(self.axes)[(*self.flips, ...)]  # ... keeps a 0-d array an array

    def logical(self, canonical: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The inverse: a view of canonical elements with the axes of the array."""
        if not self.flips:
            return canonical.reshape(shape)
        ordered = canonical.reshape([shape[axis] for axis in self.axes])
        return ordered[(*self.flips, ...)].transpose(np.argsort(self.axes))


def layout_of(array: NDArray[Any]) -> Layout:
    """The layout of `array`; axes of length 1 keep their place among equals."""
    if array.flags.c_contiguous:
        return _in_order(array.ndim)
    strides = [
        stride if length > 1 else 0
        for stride, length in zip(array.strides, array.shape, strict=True)
    ]
    if array.flags.f_contiguous:
        axes = list(range(array.ndim))[::-1]
    else:
        axes = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
    flips = [slice(None, None, -1 if strides[axis] < 0 else None) for axis in axes]
    return Layout(tuple(axes), tuple(flips))


@functools.cache
def _in_order(ndim: int) -> Layout:
    return Layout(tuple(range(ndim)), ())


def is_dense(canonical: NDArray[Any]) -> bool:
    """Whether kernels can run over a canonical view in place."""
    return canonical.flags.c_contiguous and canonical.flags.aligned


def overlaps_itself(canonical: NDArray[Any]) -> bool:
    """Whether two elements of a canonical view may share memory, as after a broadcast."""
    if canonical.size == 0:
        return False
    reach = canonical.itemsize
    for length, stride in zip(canonical.shape[::-1], canonical.strides[::-1], strict=True):
        if length > 1:
            if stride < reach:
                return True
            reach = stride * length
    return False


def memory_key(canonical: NDArray[Any]) -> Key:
    """What tells the memory of one variable from that of another."""
    dtype = canonical.dtype
    if canonical.flags.c_contiguous:
        return (address_of(canonical), dtype, canonical.size)
    return (address_of(canonical), dtype, *_collapsed(canonical))


def rows_key(table: NDArray[Any]) -> Key:
    """What tells the rows of a table from those of other views of its memory."""
    rows = len(table)
    if rows == 0:
        return (0,)
    first = table[0:1]
    step = table.strides[0] if rows > 1 else 0
    return (rows, step, memory_key(layout_of(first).canonical(first)))


def _collapsed(canonical: NDArray[Any]) -> Key:
    """Shape and strides with axes that continue each other joined, so that views agree."""
    joined: list[tuple[int, int]] = []
    for length, stride in zip(canonical.shape, canonical.strides, strict=True):
        if length == 1:
            continue
        if joined and joined[-1][1] == stride * length:
            joined[-1] = (joined[-1][0] * length, stride)
        else:
            joined.append((length, stride))
    return tuple(joined)


def _reported_address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _read_address(array: NDArray[Any]) -> int:
    return _word_at(id(array) + _DATA).value


_word_at = ctypes.c_ssize_t.from_address
_DATA = object.__basicsize__  # where an array's header holds the address of its data


def _header_is_known() -> bool:
    """Whether the address is where it is expected, in arrays of more than one kind."""
    return all(
        _read_address(array) == _reported_address(array)
        for array in (np.zeros(3), np.zeros((2, 5))[1:, 2:], np.zeros(()))
    )


# To ask NumPy for an address takes microseconds, as it makes a dictionary of everything else too.
address_of = _read_address if _header_is_known() else _reported_address


def span_of(canonical: NDArray[Any]) -> tuple[int, int]:
    """The first address of a canonical view and the one after its last byte."""
    start = address_of(canonical)
    if canonical.size == 0:
        return start, start
    reach = sum(
        (length - 1) * stride
        for length, stride in zip(canonical.shape, canonical.strides, strict=True)
    )
    return start, start + reach + canonical.itemsize
