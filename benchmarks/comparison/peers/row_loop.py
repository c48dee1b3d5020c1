"""The floor of a sparse step: a loop that reads and writes the same rows and computes nothing.

Which gradient rows belong to which row of the table is found before, so this is less than a step
has to do.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import njit, prange


def row_loop(
    tables: Sequence[np.ndarray], batches: Sequence[tuple[np.ndarray, np.ndarray]], threads: int
) -> Callable[[], Any]:
    """The loop over the rows of one batch after the other.

    Parameters
    ----------
    tables : sequence of ndarray
        The table and its slots, all of one shape; they keep their values.
    batches : sequence of (indices, values)
    threads : int
    """
    arrays = tuple(_as_bits(table) for table in tables)
    turns = itertools.cycle([(*_by_row(where), _as_bits(values)) for where, values in batches])

    def run() -> None:
        numba.set_num_threads(threads)
        _pass_over_rows(*next(turns), arrays, np.uint32(0))

    return run


def _as_bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def _by_row(where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct rows, where each begins in the order of rows, and that order."""
    rows, starts = np.unique(np.sort(where), return_index=True)
    return rows, np.append(starts, where.size), np.argsort(where, kind="stable")


@njit(parallel=True, error_model="numpy")
def _pass_over_rows(rows, starts, order, values, arrays, zero):
    for k in prange(rows.size):
        row = rows[k]
        for position in range(starts[k], starts[k + 1]):
            gradient = values[order[position]]
            for j in range(gradient.size):
                arrays[0][row, j] ^= gradient[j] & zero
        for array in arrays[1:]:
            for j in range(array.shape[1]):
                array[row, j] ^= zero
