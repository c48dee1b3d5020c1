"""The memory layout of arrays, and keys that are the same for all views of a variable.

A variable is its memory: ``W``, ``W[...]``, ``W.T`` and ``W.reshape(-1)`` are views of the same
elements, and these elements have one state in the optimizer.  Slots are therefore stored, and
kernels run, in the order of a canonical view: axes by descending stride, all strides positive.
For a C- or F-contiguous array this is the order of the elements in memory.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Key = tuple[Any, ...]


class Layout(NamedTuple):
    """How an array's axes lie in memory.

    Attributes
    ----------
    axes : tuple of int
        The array's axes by descending stride.
    flips : tuple of slice
        One for each of these axes, ``slice(None, None, -1)`` if its stride is negative.  Empty for
        a C-contiguous array, which is its own canonical view.
    """

    axes: tuple[int, ...]
    flips: tuple[Any, ...]

    def canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """The canonical view of an array whose axes this layout describes."""
        if not self.flips:
            return array
        return array.transpose(self.axes)[(*self.flips, ...)]  # ... keeps a 0-d array an array

    def logical(self, canonical: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The inverse of `canonical`: a view of canonical elements with the axes of the array."""
        if not self.flips:
            return canonical.reshape(shape)
        ordered = canonical.reshape([shape[axis] for axis in self.axes])
        return ordered[(*self.flips, ...)].transpose(np.argsort(self.axes))

    def orders_like(self, other: Layout) -> bool:
        """Whether the canonical order of elements is that of another layout of the same shape."""
        ours, theirs = (one.flips or (slice(None),) * len(one.axes) for one in (self, other))
        return self.axes == other.axes and ours == theirs

    def reordered(self, flat: NDArray[Any], shape: tuple[int, ...], to: Layout) -> NDArray[Any]:
        """Elements in the canonical order of this layout, rearranged to that of `to`."""
        return to.canonical(self.logical(flat, shape)).reshape(-1)


def layout_of(array: NDArray[Any]) -> Layout:
    """The layout of an array."""
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


def canonical_view(array: NDArray[Any]) -> NDArray[Any]:
    """The array with its axes by descending stride and all strides positive."""
    return layout_of(array).canonical(array)


def is_dense(canonical: NDArray[Any]) -> bool:
    """Whether kernels can run on a canonical view in place."""
    return canonical.flags.c_contiguous and canonical.flags.aligned


def overlaps_itself(canonical: NDArray[Any]) -> bool:
    """Whether elements of a canonical view may share memory, as in a broadcast array."""
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
    """A key that identifies the memory of a canonical view."""
    dtype = canonical.dtype
    if canonical.flags.c_contiguous:
        return (address_of(canonical), dtype, canonical.size)
    return (address_of(canonical), dtype, *_collapsed(canonical))


def array_key(array: NDArray[Any]) -> Key:
    """The `memory_key` of an array, which is the same for all views of its elements."""
    return memory_key(canonical_view(array))


def rows_key(table: NDArray[Any]) -> Key:
    """A key that identifies the rows of a table; other views of its memory may have other rows."""
    rows = len(table)
    if rows == 0:
        return (0,)
    step = table.strides[0] if rows > 1 else 0
    return (rows, step, array_key(table[0:1]))


def _collapsed(canonical: NDArray[Any]) -> Key:
    """Shape and strides, with contiguous axes joined, so that all views give the same."""
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
_DATA = object.__basicsize__  # offset of the data pointer in the header of an array


def _header_is_known() -> bool:
    """Whether the data pointer is where we expect it, for several kinds of arrays."""
    return all(
        _read_address(array) == _reported_address(array)
        for array in (np.zeros(3), np.zeros((2, 5))[1:, 2:], np.zeros(()))
    )


# Asking NumPy takes microseconds, since it builds a dictionary with everything else as well.
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
