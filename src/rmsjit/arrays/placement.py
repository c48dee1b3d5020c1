"""Where arrays begin in memory."""

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
    """An uninitialised array whose data is as far from a cache line as `beside_address`.

    A vector that straddles two cache lines costs two accesses; where a variable and its slots are
    off by the same number of bytes, work that starts on a line of one starts on a line of all.
    """
    nbytes = dtype.itemsize * math.prod(shape)
    memory = np.empty(nbytes + CACHE_LINE, np.uint8)
    offset = (beside_address - address_of(memory)) % CACHE_LINE
    return memory[offset : offset + nbytes].view(dtype).reshape(shape)


def empty_like_aligned(prototype: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """An uninitialised array of the shape of another, that begins on a cache line.

    For tables of embeddings, whose rows then lie on as few cache lines as they can: NumPy puts
    large arrays 16 bytes past a line, so that each row of 64 bytes is on two.  A dense variable
    gains nothing, since rmsjit begins its own work on a line wherever the variable begins.

    Parameters
    ----------
    prototype : array_like
        Its shape, and the order of its axes in memory.
    dtype : dtype_like, optional
        That of `prototype` if left out.

    Returns
    -------
    ndarray
        NumPy asks for huge pages for arrays of 4 MiB and more, where the system has them.

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
