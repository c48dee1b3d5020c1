"""Updating the rows of one table that a sparse gradient names."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.bound import BoundStep, Occurrences
from rmsjit.clock import Clock
from rmsjit.dtypes import Precision
from rmsjit.forms import MG, MOMENTUM, RMS, Form
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.kernels import dense, loader
from rmsjit.layout import address_of, layout_of, rows_key
from rmsjit.norms import Norms, norms_of
from rmsjit.pairs import index_error, sparse_gradient
from rmsjit.runtime import threads
from rmsjit.slots import Member
from rmsjit.spans import span_that_meets
from rmsjit.variables import array_of

PARALLEL_BYTES = 1 << 19  # of the rows that a gradient names
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
        self.variable = variable
        self.precision: Precision = member.entry.precision
        self._array = array_of(variable)
        self._form = form
        self.rows = self._array.shape[0] if self._array.ndim else 0
        self.rows_key = rows_key(self._array) if self._array.ndim else ()
        self._width = int(np.prod(self._array.shape[1:]))
        self._slots = {name: self._shaped(member.slots[name]) for name in form.slots}
        self._in_place = bool(self._array.flags.c_contiguous and self._array.flags.aligned)
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
            See `rmsjit.pairs.sparse_gradient`; IndexError for an index that is no row.
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

    def norms(self, bound: BoundStep, clipvalue: float, limit: int) -> Norms:
        """Norm and finiteness of the values as they were given."""
        values = bound.occurrences[self.position].values
        addresses = np.array([[address_of(values)]])
        return norms_of(addresses, np.array([values.size]), self.precision, clipvalue, limit)

    def update(
        self, bound: BoundStep, factors: NDArray[Any] | None, numbers: NDArray[Any], limit: int
    ) -> None:
        """Apply the rule to every row that the gradient names; as `DenseGroup.update`."""
        occurrences = bound.occurrences[self.position]
        factor = 1.0 if factors is None else float(factors[self.position])
        clock = self.members[0].entry.clock
        if occurrences.distinct and self._width:
            if self._in_place:
                arrays = [self._array, *self._slots.values()]
                self._run(arrays, occurrences, factor, numbers, clock, limit)
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
        arrays = [self._array, *self._slots.values()]
        copies = [np.ascontiguousarray(array[rows]) for array in arrays]
        part = None
        if clock is not None:
            part = clock.of_rows(rows)
        places = places.reshape(-1).astype(np.int64)
        compact = _found(occurrences.values, places, np.zeros(len(rows), np.int32))
        self._run(copies, compact, factor, numbers, part, limit)
        for array, copy in zip(arrays, copies, strict=True):
            array[rows] = copy
        if clock is not None and part is not None:
            clock.done[rows] = part.done

    def _run(
        self,
        arrays: list[NDArray[Any]],
        occurrences: Occurrences,
        factor: float,
        numbers: NDArray[Any],
        clock: Clock | None,
        limit: int,
    ) -> None:
        precision, width = self.precision, self._width
        touched = occurrences.distinct * width * self._array.itemsize * (1 + len(self._slots))
        granted = threads.acquire(limit if touched >= PARALLEL_BYTES else 1)
        try:
            loader.update_rows(
                precision,
                self._form.centered,
                self._form.has_momentum,
                clock is not None,
                granted > 1,
            )(
                self._table(arrays),
                np.array([[address_of(occurrences.values)]]),
                occurrences.indices,
                occurrences.firsts,
                occurrences.following,
                occurrences.distinct,
                np.empty(granted + 1, np.int64),
                np.empty((granted, width), _total_dtype(precision)),
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
        arrays = [self._array, *self._slots.values()]
        if self._in_place:
            self._run_catch_up(arrays, wanted, clock, limit)
            return
        copies = [np.ascontiguousarray(array[wanted]) for array in arrays]
        part = clock.of_rows(wanted)
        self._run_catch_up(copies, np.arange(len(wanted)), part, limit)
        for array, copy in zip(arrays, copies, strict=True):
            array[wanted] = copy
        clock.done[wanted] = clock.now

    def _run_catch_up(
        self, arrays: list[NDArray[Any]], rows: NDArray[np.int64], clock: Clock, limit: int
    ) -> None:
        precision = self.precision
        touched = len(rows) * self._width * self._array.itemsize * (1 + len(self._slots))
        granted = threads.acquire(limit if touched >= PARALLEL_BYTES else 1)
        try:
            loader.catch_up_rows(
                precision, self._form.centered, self._form.has_momentum, granted > 1
            )(
                self._table(arrays),
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

    def _table(self, arrays: list[NDArray[Any]]) -> NDArray[np.int64]:
        """The addresses of the variable and its slots, as kernels take them."""
        columns = {RMS: dense.RMS, MG: dense.MG, MOMENTUM: dense.MOMENTUM}
        table = np.zeros((1, dense.TABLE_COLUMNS), np.int64)
        table[0, dense.VARIABLE] = address_of(arrays[0])
        for name, array in zip(self._slots, arrays[1:], strict=True):
            table[0, columns[name]] = address_of(array)
        return table


def _found(
    values: NDArray[Any], indices: NDArray[np.int64], scratch: NDArray[np.int32]
) -> Occurrences:
    firsts = np.empty(len(indices), np.int32)
    following = np.empty(len(indices), np.int32)
    distinct = loader.find_rows()(indices, scratch, firsts, following)
    return Occurrences(values, indices, firsts, following, distinct)


def _total_dtype(precision: Precision) -> str:
    return precision.storage if precision.parts == 2 else precision.computing
