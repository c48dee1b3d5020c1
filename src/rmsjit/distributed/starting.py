"""Overwriting arrays on all ranks with those of rank 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import broadcast


class Overwriting:
    """Arrays of equal shapes and dtypes on all ranks, about to be overwritten.

    Memory for copies of those that are not contiguous is allocated at once, so that `run` needs
    none: a rank that runs out of memory fails before the others wait for it.
    """

    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None:
        self._copies = [(array, np.ascontiguousarray(array)) for array in arrays]
        for array, _ in self._copies:
            if not array.flags.writeable:
                raise ValueError("arrays must be writeable to be set to the values of rank 0")

    def run(self, comm: Any) -> None:
        """Overwrite the arrays with what rank 0 has in them now."""
        for array, contiguous in self._copies:
            if comm.rank == 0 and contiguous is not array:
                contiguous[...] = array
            broadcast(comm, contiguous, array.dtype, array.shape)
            if comm.rank != 0 and not array.flags.c_contiguous:
                array[...] = contiguous
