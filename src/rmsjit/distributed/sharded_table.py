"""The exchange of sparse gradients where each rank owns some rows of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.incoming import Rows
from rmsjit.distributed.shards import Cut
from rmsjit.distributed.sparse import SlicesType, combined, gathered, index_dtype


def exchanged(comm: Any, own: NDArray[Any], gives: Any, takes: Any) -> NDArray[Any]:
    """Slices from all ranks in order of rank: `gives` to each of them, `takes` from each."""
    shape = own.shape[1:]
    width = int(np.prod(shape))
    arrived = np.empty((int(takes.sum()), *shape), own.dtype)
    if width == 0:
        return arrived
    own = np.ascontiguousarray(own)
    with SlicesType(own, width) as slices:
        comm.Alltoallv(
            [own, (gives.tolist(), (np.cumsum(gives) - gives).tolist()), slices],
            [arrived, (takes.tolist(), (np.cumsum(takes) - takes).tolist()), slices],
        )
    return arrived


def splits(indices: NDArray[np.int64], cut: Cut) -> NDArray[np.int64]:
    """How many of these ascending indices each rank owns."""
    return np.diff(np.searchsorted(indices, cut.bounds)).astype(np.int64)


class ShardedTable:
    """One table; each rank updates its own rows.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    table : ndarray
    cut : Cut
    """

    def __init__(self, comm: Any, table: NDArray[Any], cut: Cut) -> None:
        self._comm = comm
        self._table = table
        self.cut = cut
        self._first = cut.bounds[comm.rank]

    def reduce(
        self,
        own: Rows,
        gives: NDArray[np.int64],
        takes: NDArray[np.int64],
        scale: float,
    ) -> Rows:
        """The sum over ranks of the rows that this rank owns, each row once."""
        short = own.indices.astype(index_dtype(len(self._table)), copy=False)
        indices = exchanged(self._comm, short, gives, takes).astype(np.int64, copy=False)
        summed = combined(Rows(exchanged(self._comm, own.values, gives, takes), indices))
        values = summed.values
        if scale != 1.0:
            values = values * values.real.dtype.type(scale)
        return Rows(values.astype(self._table.dtype, copy=False), summed.indices)

    def take(self, own: Rows) -> Rows:
        """The rows that this rank owns, of a gradient that needs no reduction."""
        summed = combined(own)
        low, high = self.cut.bounds[self._comm.rank], self.cut.bounds[self._comm.rank + 1]
        start, stop = np.searchsorted(summed.indices, [low, high])
        values = summed.values[start:stop].astype(self._table.dtype, copy=False)
        return Rows(values, summed.indices[start:stop])

    def local(self, rows: Rows) -> Rows:
        """Rows of the table as rows of the part that this rank owns."""
        return Rows(rows.values, rows.indices - self._first)

    def share(self, touched: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Give all ranks the rows that this one has updated; each has as many as `counts` says."""
        short = touched.astype(index_dtype(len(self._table)), copy=False)
        rows = gathered(self._comm, short, counts)
        values = np.ascontiguousarray(self._table[touched])
        bits = np.dtype(f"u{values.itemsize}") if values.itemsize <= 2 else values.dtype
        arrived = gathered(self._comm, values.view(bits), counts)
        self._table[rows] = arrived.view(self._table.dtype)
