"""Allocation of arrays with a given alignment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rmsjit.arrays.layout import address_of, layout_of

CACHE_LINE = 64  # bytes


def allocate_aligned(
    shape: tuple[int, ...], dtype: np.dtype[Any], beside_address: int = 0
) -> NDArray[Any]:
    """An uninitialised array with the same offset within a cache line as `beside_address`.

    A vector that straddles two cache lines costs two accesses.  If a variable and its slots have
    the same offset, work that is aligned for one of them is aligned for all.
    """
    nbytes = dtype.itemsize * math.prod(shape)
    memory = np.empty(nbytes + CACHE_LINE, np.uint8)
    offset = (beside_address - address_of(memory)) % CACHE_LINE
    return memory[offset : offset + nbytes].view(dtype).reshape(shape)


def empty_like_aligned(prototype: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """An uninitialised array with the shape of another, aligned to a cache line.

    Use it for embedding tables, whose rows then occupy as few cache lines as possible.  NumPy
    places large arrays 16 bytes past a cache line, so every row of 64 bytes occupies two.  Dense
    variables gain nothing: rmsjit aligns its work on them wherever they begin.

    Parameters
    ----------
    prototype : array_like
        Gives the shape and the order of the axes in memory.
    dtype : dtype_like, optional
        By default that of `prototype`.

    Returns
    -------
    ndarray
        For arrays of 4 MiB and more, NumPy asks the system for huge pages if it has them.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> table = rmsjit.empty_like_aligned(np.zeros((1000, 16), np.float32))
    >>> table[...] = 0.1
    >>> table.ctypes.data % 64
    0
    """
    array = np.asarray(prototype)
    memory = allocate_aligned((array.size,), np.dtype(dtype or array.dtype))
    layout = layout_of(array)
    shape = tuple(array.shape[axis] for axis in layout.axes)
    return memory.reshape(shape).transpose(np.argsort(layout.axes))
