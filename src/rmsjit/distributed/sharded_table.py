"""The exchange of sparse gradients of a table whose rows are distributed over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import exchanged, gathered
from rmsjit.distributed.incoming import Rows
from rmsjit.distributed.shards import Cut
from rmsjit.distributed.sparse import combined, finished, short
from rmsjit.distributed.wire import Slices
from rmsjit.indexed_slices import IndexedSlices


class ShardedTable:
    """One table; each rank updates its own rows."""

    def __init__(self, comm: Any, table: NDArray[Any], cut: Cut, slices: Slices) -> None:
        self._comm = comm
        self._table = table
        self._bounds = cut.bounds
        self._slices = slices

    def splits(self, own: Rows) -> NDArray[np.int64]:
        """How many rows of a gradient with ascending indices each rank owns."""
        return np.diff(np.searchsorted(own.indices, self._bounds)).astype(np.int64)

    def reduce(
        self, own: Rows, gives: NDArray[np.int64], takes: NDArray[np.int64], scale: float
    ) -> Rows:
        """The sum over ranks of the rows that this rank owns, with unique indices."""
        indices = exchanged(self._comm, short(own.indices, len(self._table)), gives, takes)
        values = self._slices.exchanged(self._comm, own.values, gives, takes)
        summed = combined(Rows(values, indices.astype(np.int64, copy=False)))
        return finished(summed, scale, self._table.dtype)

    def take(self, own: Rows) -> Rows:
        """The rows that this rank owns, from a combined gradient that needs no reduction."""
        bounds = self._bounds[self._comm.rank : self._comm.rank + 2]
        start, stop = np.searchsorted(own.indices, bounds)
        return finished(
            Rows(own.values[start:stop], own.indices[start:stop]), 1.0, self._table.dtype
        )

    def local(self, rows: Rows) -> IndexedSlices:
        """Rows of the table as a gradient of the part that this rank owns."""
        return IndexedSlices(rows.values, rows.indices - self._bounds[self._comm.rank])

    def share(self, touched: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Send the rows that this rank has updated to all ranks; `counts` has each rank's number.

        MPI has no half types: they are sent as integers.
        """
        rows = gathered(self._comm, short(touched, len(self._table)), counts)
        values = np.ascontiguousarray(self._table[touched])
        bits = np.dtype(f"u{values.itemsize}") if values.itemsize <= 2 else values.dtype
        arrived = gathered(self._comm, values.view(bits), counts)
        self._table[rows] = arrived.view(self._table.dtype)
