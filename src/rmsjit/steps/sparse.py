"""Updating the rows of one table that a sparse gradient names."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import address_of, layout_of, rows_key
from rmsjit.arrays.overlap import span_that_meets
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.kernels import dense, loader
from rmsjit.rule.form import Form
from rmsjit.runtime import threads
from rmsjit.state.clock import Clock
from rmsjit.state.slots import Member
from rmsjit.steps.binding import BoundStep, Occurrences
from rmsjit.steps.norms import NormPass, Norms
from rmsjit.steps.pairs import index_error, sparse_gradient
from rmsjit.steps.table import table_of
from rmsjit.variables import array_of

_AT_RANDOM = 4  # times as long as one in order takes an access to a row
_APART = 32  # elements between what two threads write, more than a pair of cache lines
_ROWS_AT_ONCE = 1 << 14  # that a sync of a whole table looks at, to need little memory
RHO, MOMENTUM_FACTOR = 1, 3  # fields of `rmsjit.kernels.rule.RuleNumbers`


class SparseGroup:
    """One table and its slots.

    Parameters
    ----------
    position : int
        Where its pair stands in the list.
    variable : ndarray or Variable
        The table as it was given.
    member : Member
        Its memory and slots.
    form : Form

    Attributes
    ----------
    rows : int
        How many rows the table has.
    """

    def __init__(self, position: int, variable: Any, member: Member, form: Form) -> None:
        self.position = position
        self.positions = [position]
        self.members = (member,)
        self.sparse = True
        self.may_be_large = True  # as the gradient has rows
        self.variable = variable
        self.precision: Precision = member.entry.precision
        self._array = array_of(variable)
        self._form = form
        self.rows = self._array.shape[0] if self._array.ndim else 0
        self.rows_key = rows_key(self._array) if self._array.ndim else ()
        self._width = int(np.prod(self._array.shape[1:]))
        self._itemsize: int = self._array.itemsize
        self._arrays = [self._array, *(self._shaped(member.slots[name]) for name in form.slots)]
        self._in_place = bool(self._array.flags.c_contiguous and self._array.flags.aligned)
        self._table = self._table_of(self._arrays)
        self._mg = dense.MG if form.centered else None
        self._momentum = dense.MOMENTUM if form.has_momentum else None
        self._sample = np.empty(0, self.precision.storage)

    def _shaped(self, slot: NDArray[Any]) -> NDArray[Any]:
        return layout_of(self._array).logical(slot, self._array.shape)

    def bind(self, gradient: IndexedSlices, written: NDArray[np.int64]) -> Occurrences:
        """Check a gradient and find its rows; writes nothing but scratch.

        Parameters
        ----------
        gradient : IndexedSlices
        written : int64 array
            The memory that the step writes; values that lie there are copied.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            See `rmsjit.steps.pairs.sparse_gradient`; IndexError for an index that is no row.
        """
        values, indices = sparse_gradient(gradient, self.variable, self.position)
        outside = loader.first_outside()(indices, self.rows)
        if outside >= 0:
            raise index_error(gradient, outside, self.variable, self.position)
        with np.errstate(over="ignore"):  # a number too large for the dtype becomes infinite
            values = np.ascontiguousarray(values).astype(self._array.dtype, copy=False)
        if not values.flags.aligned or span_that_meets(written, values) is not None:
            values = values.copy()
        scratch = self.members[0].entry.take_scratch(self.rows)
        occurrences = _found(values, indices, scratch)
        self.members[0].entry.give_scratch(scratch)
        return occurrences

    def bytes_of(self, bound: BoundStep) -> int:
        """The bytes that an update could write in order in the time that it takes."""
        return self._moved_by(bound.occurrences[self.position].distinct)

    def norms(self, bound: BoundStep, clipvalue: float, limit: int) -> Norms:
        """Norm and finiteness of the values as they were given."""
        values = bound.occurrences[self.position].values
        addresses = np.array([[address_of(values)]])
        norm_pass = NormPass(np.array([values.size]), self.precision)
        return norm_pass.norms(addresses, clipvalue, limit)

    def update(
        self, bound: BoundStep, factors: NDArray[Any] | None, numbers: NDArray[Any], limit: int
    ) -> None:
        """Apply the rule to every row that the gradient names; as `DenseGroup.update`."""
        occurrences = bound.occurrences[self.position]
        factor = 1.0 if factors is None else float(factors[self.position])
        clock = self.members[0].entry.clock
        if occurrences.distinct and self._width:
            if self._in_place:
                self._run(self._table, occurrences, factor, numbers, clock, limit)
            else:
                self._update_copies(occurrences, factor, numbers, clock, limit)
        if clock is not None:
            clock.tick(float(numbers[RHO]), float(numbers[MOMENTUM_FACTOR]))

    def _update_copies(
        self,
        occurrences: Occurrences,
        factor: float,
        numbers: NDArray[Any],
        clock: Clock | None,
        limit: int,
    ) -> None:
        """The same for a table whose rows are not contiguous, on copies of the named rows."""
        rows, places = np.unique(occurrences.indices, return_inverse=True)
        copies = [np.ascontiguousarray(array[rows]) for array in self._arrays]
        part = None if clock is None else clock.of_rows(rows)
        places = places.reshape(-1).astype(np.int64)
        compact = _found(occurrences.values, places, np.zeros(len(rows), np.int32))
        self._run(self._table_of(copies), compact, factor, numbers, part, limit)
        for array, copy in zip(self._arrays, copies, strict=True):
            array[rows] = copy
        if clock is not None and part is not None:
            clock.done[rows] = part.done

    def _run(
        self,
        table: NDArray[np.int64],
        occurrences: Occurrences,
        factor: float,
        numbers: NDArray[Any],
        clock: Clock | None,
        limit: int,
    ) -> None:
        precision = self.precision
        granted = self._acquire(occurrences.distinct, limit)
        try:
            loader.update_rows(
                precision,
                self._form.centered,
                self._form.has_momentum,
                clock is not None,
                granted > 1,
            )(
                table,
                np.array([[address_of(occurrences.values)]]),
                occurrences.indices,
                occurrences.starts,
                occurrences.order,
                occurrences.distinct,
                self._width,
                np.empty(granted + 1, np.int64),
                np.empty((granted, self._width + _APART), _total_dtype(precision)),
                np.array([factor], precision.computing),
                numbers,
                self._sample,
                self._mg,
                self._momentum,
                None if clock is None else clock.done,
                None if clock is None else clock.lapses(precision.computing),
                0 if clock is None else clock.now + 1,
            )
        finally:
            threads.release(granted)

    def catch_up(self, clock: Clock, rows: NDArray[np.int64] | None, limit: int) -> None:
        """Bring `rows`, or all of the table, to the last step of its clock."""
        if clock.now == 0 or self.rows == 0 or self._width == 0:
            return
        if rows is not None:
            self._catch_up_behind(clock, rows[clock.done[rows] != clock.now], limit)
            return
        for start in range(0, self.rows, _ROWS_AT_ONCE):
            behind = np.flatnonzero(clock.done[start : start + _ROWS_AT_ONCE] != clock.now)
            self._catch_up_behind(clock, start + behind, limit)

    def _catch_up_behind(self, clock: Clock, wanted: NDArray[np.int64], limit: int) -> None:
        if self._in_place:
            self._run_catch_up(self._table, wanted, clock, limit)
            return
        copies = [np.ascontiguousarray(array[wanted]) for array in self._arrays]
        part = clock.of_rows(wanted)
        self._run_catch_up(self._table_of(copies), np.arange(len(wanted)), part, limit)
        for array, copy in zip(self._arrays, copies, strict=True):
            array[wanted] = copy
        clock.done[wanted] = clock.now

    def _run_catch_up(
        self, table: NDArray[np.int64], rows: NDArray[np.int64], clock: Clock, limit: int
    ) -> None:
        precision = self.precision
        granted = self._acquire(len(rows), limit)
        try:
            loader.catch_up_rows(
                precision, self._form.centered, self._form.has_momentum, granted > 1
            )(
                table,
                rows,
                self._width,
                self._sample,
                self._mg,
                self._momentum,
                clock.done,
                clock.lapses(precision.computing),
                clock.now,
            )
        finally:
            threads.release(granted)

    def _acquire(self, rows: int, limit: int) -> int:
        """Leave for a launch over a number of rows."""
        nbytes = self._moved_by(rows)
        return threads.acquire(threads.worth(limit, nbytes), nbytes)

    def _moved_by(self, rows: int) -> int:
        return _AT_RANDOM * rows * self._width * self._itemsize * len(self._arrays)

    def _table_of(self, arrays: list[NDArray[Any]]) -> NDArray[np.int64]:
        """The addresses of the table and its slots, or of copies of them, as kernels take them."""
        return table_of(arrays[:1], [dict(zip(self._form.slots, arrays[1:], strict=True))])


def _found(
    values: NDArray[Any], indices: NDArray[np.int64], scratch: NDArray[np.int32]
) -> Occurrences:
    order, starts = np.empty(len(indices), np.int32), np.empty(len(indices) + 1, np.int32)
    distinct = loader.find_rows()(indices, scratch, starts, order)
    return Occurrences(values, indices, starts, order, distinct)


def _total_dtype(precision: Precision) -> str:
    return precision.storage if precision.parts == 2 else precision.computing
