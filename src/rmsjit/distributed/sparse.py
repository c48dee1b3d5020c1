"""Sums of sparse gradients over ranks, identical to the bit on every rank.

Each rank first adds up its own duplicates, in order of occurrence.  The remaining rows go to all
ranks, which add them up in order of rank.  If that sends more bytes than the whole table has, the
rows are sent as a dense gradient instead, and only the indices are gathered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.distributed.comm import gathered
from rmsjit.distributed.dense import DenseBuffer
from rmsjit.distributed.incoming import Rows
from rmsjit.distributed.packing import Flats, wire_dtype
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.wire import slices_for
from rmsjit.rule.clipping import Clipping

_MOST_IN_32_BITS = 2**31 - 1
_FEW = 8


def combined(rows: Rows) -> Rows:
    """The same gradient with ascending, unique indices; duplicates are added in order."""
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
    """The sums of groups of consecutive slices, each added strictly in order.

    All second slices are added at once, then all third ones; the last few long groups are finished
    one by one.  (`np.add.reduceat` may add in another order.)
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
    """A sparse gradient with combined duplicates, in the dtype in which it is sent."""
    values = rows.values.astype(wire_dtype(precision), copy=False)
    return combined(Rows(values, rows.indices))


def finished(rows: Rows, scale: float, dtype: np.dtype[Any]) -> Rows:
    """Sums multiplied by `scale` and rounded to the dtype of the table."""
    values = rows.values
    if scale != 1.0:
        values = values * values.real.dtype.type(scale)
    return Rows(values.astype(dtype, copy=False), rows.indices)


def needs_merging(clipping: Clipping, needs_norms: bool, precision: Precision) -> bool:
    """Whether ranks' slices must be summed before the update, which otherwise adds them itself.

    Clipping applies to sums, norms are those of sums, and half types are rounded once, after them.
    """
    return needs_norms or not clipping.is_none or precision.is_half


def short(indices: NDArray[np.int64], rows: int) -> NDArray[Any]:
    """Indices of a table with `rows` in the dtype in which they are sent."""
    return indices.astype(np.int32 if rows <= _MOST_IN_32_BITS else np.int64, copy=False)


class SparseTable:
    """The reduction of the gradients of one table."""

    def __init__(
        self, table: NDArray[Any], precision: Precision, settings: Settings, ranks: int
    ) -> None:
        self._shape = table.shape
        self._dtype = table.dtype
        self._precision = precision
        self._settings = settings
        self._slices = slices_for(settings, precision, ranks)
        self._dense: DenseBuffer | None = None

    def reduce(
        self, comm: Any, own: Rows, counts: NDArray[np.int64], scale: float, merge: bool
    ) -> Rows:
        """The sum over ranks of what `travelling` returns, multiplied by `scale`.

        `counts` has the number of slices of each rank.  Without `merge` indices may repeat, and
        the update adds up their slices.
        """
        rows = self._shape[0]
        indices = gathered(comm, short(own.indices, rows), counts).astype(np.int64, copy=False)
        # Gathering sends every slice to every rank; reducing a table sends it about twice.
        if int(counts.sum()) > 2 * rows:
            result = self._through_table(comm, own, indices)
        else:
            result = Rows(self._slices.gathered(comm, own.values, counts), indices)
            result = combined(result) if merge else result
        return finished(result, scale, self._dtype)

    def _through_table(self, comm: Any, own: Rows, indices: NDArray[np.int64]) -> Rows:
        table = np.zeros(self._shape, own.values.dtype)
        table[own.indices] = own.values
        if self._dense is None:
            self._dense = DenseBuffer(
                comm, self._precision, own.values.dtype, {0: table.size}, self._settings
            )
        self._dense.start(Flats.of([table.reshape(-1)]))
        self._dense.finish(1.0)
        named = np.zeros(self._shape[0], bool)
        named[indices] = True
        rows = np.flatnonzero(named)
        return Rows(self._dense.results[0].reshape(self._shape)[rows], rows)
