"""Squared norms of gradients, and whether they are finite, through the compiled kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.kernels import loader
from rmsjit.kernels.norms import NORM_PIECE
from rmsjit.runtime import threads
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


class NormPass:
    """The pass over gradients of some sizes.

    Parameters
    ----------
    sizes : int64 array, shape (gradients,)
        Numbers of elements.
    precision : Precision
        Of the gradients.
    """

    def __init__(self, sizes: NDArray[np.int64], precision: Precision) -> None:
        self._sizes = sizes
        self._precision = precision
        self._nbytes = int(sizes.sum()) * np.dtype(precision.storage).itemsize
        self._sample = np.empty(0, precision.real)
        self._partitions: dict[int, Partition] = {}
        self._bound = math.inf, np.array([math.inf], precision.computing)

    def norms(self, addresses: NDArray[np.int64], clipvalue: float, limit: int) -> Norms:
        """Read the gradients once.

        Parameters
        ----------
        addresses : int64 array, shape (gradients, 1)
        clipvalue : float
            Bound on the values in the norms.
        limit : int
            The most threads.
        """
        precision = self._precision
        granted = threads.acquire(threads.worth(limit, self._nbytes), self._nbytes)
        try:
            part = self._partition(granted)
            totals = np.empty((2, len(self._sizes)))
            loader.sums_of_squares(precision.real, precision.computing, granted > 1)(
                addresses,
                part.pieces,
                part.bins,
                self._bound_array(clipvalue),
                self._sample,
                np.empty((2, len(part.pieces))),
                totals,
            )
        finally:
            threads.release(granted)
        return Norms(totals[0], totals[1] == 0)

    def _bound_array(self, clipvalue: float) -> NDArray[Any]:
        last, array = self._bound  # one read, since other threads may step at once
        if clipvalue != last:
            with np.errstate(over="ignore"):  # a bound beyond the dtype bounds nothing
                array = np.array([clipvalue], self._precision.computing)
            self._bound = clipvalue, array
        return array

    def _partition(self, bins: int) -> Partition:
        """Pieces of a fixed length, which no number of threads changes."""
        known = self._partitions.get(bins)
        if known is None:
            known = cut_by_length(self._sizes * self._precision.parts, NORM_PIECE, bins)
            self._partitions[bins] = known
        return known
