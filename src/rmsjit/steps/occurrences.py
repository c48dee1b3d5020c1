"""The rows that a sparse gradient names, and where each of them occurs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import loader


class Occurrences(NamedTuple):
    """A sparse gradient that has been checked, and its rows.

    Attributes
    ----------
    values : ndarray, shape (n, width)
        Contiguous, in the dtype of the table.
    indices : int64 array, shape (n,)
    starts, order : int32 array, shape (n + 1,) and (n,)
        See `rmsjit.kernels.rows.find_rows`.
    distinct : int
        The number of different rows.
    """

    values: NDArray[Any]
    indices: NDArray[np.int64]
    starts: NDArray[np.int32]
    order: NDArray[np.int32]
    distinct: int


def found_rows(
    values: NDArray[Any], indices: NDArray[np.int64], marks: NDArray[np.int32]
) -> Occurrences:
    """Find the rows that a gradient names; `marks` is a zero for each row of the table.

    `distinct` is negative if an index is out of range; see `rmsjit.kernels.rows.find_rows`.
    """
    order, starts = np.empty(len(indices), np.int32), np.empty(len(indices) + 1, np.int32)
    arrays: list[Any] = [indices, marks, starts, order]
    search = np.array([len(indices), *map(address_of, arrays), len(marks)], np.int64)
    distinct = loader.find_rows().call(address_of(search))
    return Occurrences(values, indices, starts, order, distinct)
