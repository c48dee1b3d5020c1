"""Squared norms of gradients, and whether they are finite, through the compiled kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.kernels import loader
from rmsjit.kernels.norms import NORM_PIECE
from rmsjit.runtime import threads
from rmsjit.state.dtypes import Precision
from rmsjit.steps.partition import Partition, cut_by_length


class Norms(NamedTuple):
    """What one pass over gradients tells.

    Attributes
    ----------
    squares : float64 array, shape (gradients,)
        Squared norms, of values clipped first.
    finite : bool array, shape (gradients,)
        Whether all values are finite, before they are clipped.
    """

    squares: NDArray[Any]
    finite: NDArray[np.bool_]


def norm_partition(sizes: NDArray[np.int64], precision: Precision, bins: int) -> Partition:
    """Gradients of these sizes in pieces of a fixed length, which no number of threads changes."""
    return cut_by_length(sizes * precision.parts, NORM_PIECE, bins)


def norms_of(
    addresses: NDArray[np.int64],
    sizes: NDArray[np.int64],
    precision: Precision,
    clipvalue: float,
    limit: int,
) -> Norms:
    """Read gradients once.

    Parameters
    ----------
    addresses : int64 array, shape (gradients, 1)
    sizes : int64 array, shape (gradients,)
        Numbers of elements.
    precision : Precision
        Of the gradients.
    clipvalue : float
        Bound on the values in the norms.
    limit : int
        The most threads.
    """
    nbytes = int(sizes.sum()) * np.dtype(precision.storage).itemsize
    granted = threads.acquire(threads.worth(limit, nbytes), nbytes)
    try:
        part = norm_partition(sizes, precision, granted)
        sums = np.empty((2, len(part.pieces)))
        loader.sums_of_squares(precision.real, precision.computing, granted > 1)(
            addresses,
            part.pieces,
            part.bins,
            _bound(clipvalue, precision),
            np.empty(0, precision.real),
            sums,
        )
    finally:
        threads.release(granted)
    # Adds in the order of the pieces, whatever thread has summed them.
    rows = part.pieces[:, 0]
    squares, poison = (np.bincount(rows, row, minlength=len(sizes)) for row in sums)
    return Norms(squares, poison == 0)


def _bound(clipvalue: float, precision: Precision) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # a bound beyond the dtype bounds nothing
        return np.array([clipvalue], precision.computing)
