"""Sums of sparse gradients over ranks, the same on every rank to the bit.

Each rank first adds up its own duplicates, in order of occurrence; the rows that are left go to
all ranks, which add them up in order of rank.  Where that moves more bytes than the whole table
would, the rows travel as a dense gradient instead, and only the indices are gathered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.dense import DenseBuffer
from rmsjit.distributed.incoming import Rows
from rmsjit.distributed.packing import Flats, wire_dtype
from rmsjit.rule.clipping import Clipping

_MOST_IN_32_BITS = 2**31 - 1
_FEW = 8


def combined(rows: Rows) -> Rows:
    """The same gradient with ascending indices, each once; slices added as they occur."""
    values, indices = rows
    if len(indices) < 2 or bool(np.all(indices[1:] > indices[:-1])):
        return rows
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    is_first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    sorted_values = values[order]
    if len(starts) < len(ordered):
        sorted_values = _sums(sorted_values, starts)
    return Rows(sorted_values, ordered[starts])


def _sums(values: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """The sums of consecutive slices, strictly one after the other.

    All second slices are added at once, then all third ones; the few long groups that are left are
    finished one by one.  (`np.add.reduceat` is free to add in another order.)
    """
    lengths = np.diff(starts, append=len(values))
    sums = values[starts]
    done, active = 1, np.flatnonzero(lengths > 1)
    while len(active) > _FEW:
        sums[active] += values[starts[active] + done]
        done += 1
        active = active[lengths[active] > done]
    for group in active.tolist():
        rest = values[starts[group] + done : starts[group] + lengths[group]]
        sums[group] = np.add.accumulate(np.concatenate([sums[group : group + 1], rest]))[-1]
    return sums


def travelling(rows: Rows, precision: Precision) -> Rows:
    """A sparse gradient with its duplicates combined, in the dtype in which it travels."""
    values = rows.values.astype(wire_dtype(precision), copy=False)
    return combined(Rows(values, rows.indices))


def needs_merging(clipping: Clipping, precision: Precision) -> bool:
    """Whether the update must be given sums, and can't add up the slices of ranks itself.

    Sums are clipped; and half types are rounded once, after the sum.
    """
    return not clipping.is_none or precision.is_half


def index_dtype(rows: int) -> np.dtype[Any]:
    """The dtype in which indices of a table of so many rows travel."""
    return np.dtype(np.int32 if rows <= _MOST_IN_32_BITS else np.int64)


class SlicesType:
    """The MPI type of a slice, so that counts are of slices and stay small."""

    def __init__(self, values: NDArray[Any], width: int) -> None:
        element = load_mpi().Datatype.fromcode(values.dtype.char)
        self.handle = element.Create_contiguous(width).Commit()

    def __enter__(self) -> Any:
        return self.handle

    def __exit__(self, *exc: object) -> None:
        self.handle.Free()


def gathered(comm: Any, own: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """The slices of all ranks in order of rank; `counts` says how many each has."""
    shape = own.shape[1:]
    width = int(np.prod(shape))
    everything = np.empty((int(counts.sum()), *shape), own.dtype)
    if width == 0 or len(everything) == 0:
        return everything
    own = np.ascontiguousarray(own)
    starts = np.cumsum(counts) - counts
    with SlicesType(own, width) as slices:
        comm.Allgatherv(
            [own, len(own), slices], [everything, (counts.tolist(), starts.tolist()), slices]
        )
    return everything


class SparseTable:
    """The reduction of the gradients of one table.

    Parameters
    ----------
    table : ndarray
    precision : Precision
    bucket_bytes : int
    """

    def __init__(self, table: NDArray[Any], precision: Precision, bucket_bytes: int) -> None:
        self._shape = table.shape
        self._dtype = table.dtype
        self._precision = precision
        self._bucket_bytes = bucket_bytes
        self._dense: DenseBuffer | None = None

    def goes_dense(self, total: int) -> bool:
        """Whether so many slices of all ranks are better sent as a table.

        Gathering takes every slice to every rank; reducing a table sends it about twice.
        """
        rows: int = self._shape[0]
        return total > 2 * rows

    def reduce(
        self, comm: Any, own: Rows, counts: NDArray[np.int64], scale: float, merge: bool
    ) -> Rows:
        """The sum over ranks.

        Parameters
        ----------
        comm : mpi4py.MPI.Comm
        own : Rows
            Of this rank, its duplicates combined.
        counts : int64 array, shape (ranks,)
            How many slices each rank has.
        scale : float
            A factor for the sum.
        merge : bool
            Whether every index must come once; otherwise the update adds up the slices of ranks.
        """
        short = own.indices.astype(index_dtype(self._shape[0]), copy=False)
        indices = gathered(comm, short, counts).astype(np.int64, copy=False)
        if self.goes_dense(int(counts.sum())):
            result = self._through_table(comm, own, indices)
        else:
            result = Rows(gathered(comm, own.values, counts), indices)
            result = combined(result) if merge else result
        values = result.values
        if scale != 1.0:
            values = values * values.real.dtype.type(scale)
        return Rows(values.astype(self._dtype, copy=False), result.indices)

    def _through_table(self, comm: Any, own: Rows, indices: NDArray[np.int64]) -> Rows:
        table = np.zeros(self._shape, own.values.dtype)
        table[own.indices] = own.values
        if self._dense is None:
            self._dense = DenseBuffer(
                self._precision, own.values.dtype, {0: table.size}, self._bucket_bytes
            )
        self._dense.start(comm, Flats.of([table.reshape(-1)]))
        self._dense.finish(1.0)
        named = np.zeros(self._shape[0], bool)
        named[indices] = True
        rows = np.flatnonzero(named)
        return Rows(self._dense.result(0).reshape(self._shape)[rows], rows)
