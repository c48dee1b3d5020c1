"""Copying strided arrays to contiguous memory and back, for kernels that can't run in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import copies, loader
from rmsjit.steps.act import Call


def copy_call(
    array: NDArray[Any],
    contiguous: NDArray[Any],
    outwards: bool,
    rows: NDArray[np.int64] | None = None,
    bins: int = 1,
) -> Call:
    """The call that copies an array, or some of its rows, to or from contiguous memory.

    Parameters
    ----------
    array : ndarray
        With any strides.
    contiguous : ndarray
        Of the same dtype, and of the shape of the copied part.
    outwards : bool
        Whether to copy from `contiguous` to `array`.
    rows : int64 array, optional
        Which rows are copied; all by default.
    bins : int
        The number of threads, which each copy some of the rows.
    """
    shape, strides = contiguous.shape or (1,), array.strides or (0,)
    if len(shape) == 1 and rows is None:  # one row, whose elements take no further arithmetic
        shape, strides = (1, *shape), (0, *strides)
    words = np.zeros(copies.STRIDED_WORDS + 2 * len(shape), np.int64)
    words[0] = bins
    words[copies.SOURCE_IS_STRIDED] = not outwards
    words[copies.STRIDED], words[copies.CONTIGUOUS] = address_of(array), address_of(contiguous)
    words[copies.ITEM_BYTES], words[copies.NDIM] = array.itemsize, len(shape)
    words[copies.ROW_NUMBERS] = 0 if rows is None else address_of(rows)
    words[copies.STRIDED_WORDS :] = (*shape, *strides)
    return Call(loader.copy_strided(), words, (array, contiguous, rows))
