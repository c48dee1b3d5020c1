"""Updating the rows of one table that a sparse gradient names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import as_bytes, has_records
from rmsjit.arrays.dtypes import Kinds, Precision, converted
from rmsjit.arrays.layout import address_of, layout_of, rows_key
from rmsjit.arrays.overlap import span_that_meets
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.kernels import loader, rows
from rmsjit.rule.form import Form
from rmsjit.state.clock import Clock
from rmsjit.state.entries import Entry, Member
from rmsjit.steps.act import Call
from rmsjit.steps.binding import Binding
from rmsjit.steps.copies import copy_call
from rmsjit.steps.occurrences import Occurrences, found_rows
from rmsjit.steps.pairs import index_error, sparse_gradient
from rmsjit.variables import array_of

_RANDOM_ROW_COST = 4  # of access to a row at random, relative to one in sequence
_APART = 32  # elements between what two threads write, more than a pair of cache lines


class Table:
    """A table and its slots, as the kernels for rows need them.

    Parameters
    ----------
    variable : ndarray or Variable
        The table as it was given.
    member : Member
        Its memory and slots.
    form : Form

    Attributes
    ----------
    rows, width : int
        The number of rows, and of elements in a row.
    rows_key : tuple
        See `rmsjit.arrays.layout.rows_key`.
    in_place : bool
        Whether kernels can run over its rows in place.
    """

    def __init__(self, variable: Any, member: Member, form: Form) -> None:
        self.array: NDArray[Any] = array_of(variable)
        self.kinds: Kinds
        small = member.entry.is_small
        self.form, self.kinds = form.compiled_for(member.entry.precision, small)
        self.rows = self.array.shape[0] if self.array.ndim else 0
        self.rows_key = rows_key(self.array) if self.array.ndim else ()
        self.width = int(np.prod(self.array.shape[1:]))
        slots = [self._rows_of(member.slots[name]) for name in self.form.slot_names]
        self.arrays = [self.array, *slots]
        self.in_place = bool(self.array.flags.c_contiguous and self.array.flags.aligned)
        self.addresses = np.array([address_of(array) for array in self.arrays], np.int64)

    def _rows_of(self, slot: NDArray[Any]) -> NDArray[Any]:
        """The memory of a slot with the rows of the table; a packed one has a record for each."""
        if has_records(slot):
            return as_bytes(slot)
        return layout_of(self.array).logical(slot, self.array.shape)

    def bytes_of(self, count: int) -> int:
        """How many bytes could be written sequentially while some rows are updated."""
        in_row = sum(a.itemsize * math.prod(a.shape[1:]) for a in self.arrays)
        return int(_RANDOM_ROW_COST * count * in_row)

    def on_copies(
        self, numbers: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], list[Call], list[Call]]:
        """The addresses of copies of some rows, or of all; the calls that copy in and out."""
        count = self.rows if numbers is None else len(numbers)
        copies = [np.empty((count, *array.shape[1:]), array.dtype) for array in self.arrays]
        inwards, outwards = (
            [
                copy_call(array, copy, way, numbers)
                for array, copy in zip(self.arrays, copies, strict=True)
            ]
            for way in (False, True)
        )
        return np.array([address_of(copy) for copy in copies], np.int64), inwards, outwards

    def catch_up_calls(
        self, clock: Clock, numbers: NDArray[np.int64] | None, bins: int
    ) -> list[Call]:
        """The calls that bring some rows, or all, to the last step of their clock.

        Parameters
        ----------
        clock : Clock
        numbers : int64 array or None
            Which rows, without duplicates; None for all.
        bins : int
            The number of threads.
        """
        if self.rows == 0 or self.width == 0:
            return []
        count = self.rows if numbers is None else len(numbers)
        addresses, own, behind = self.addresses, clock, numbers
        before: list[Call] = []
        after: list[Call] = []
        if not self.in_place:
            addresses, before, after = self.on_copies(numbers)
            if numbers is not None:
                own, behind = clock.of_rows(numbers), None
                after.append(copy_call(clock.done, own.done, True, numbers))
        words = np.zeros(rows.CATCH_UP_WORDS, np.int64)
        words[rows.BINS], words[rows.BEHIND_COUNT] = bins, count
        words[rows.BEHIND] = 0 if behind is None else address_of(behind)
        words[rows.CATCH_TABLE], words[rows.CATCH_WIDTH] = address_of(addresses), self.width
        words[rows.CATCH_CLOCK] = address_of(own.words)
        kernel = loader.catch_up_rows(self.form, self.kinds)
        call = Call(kernel, words, (addresses, behind, own, self.arrays))
        return [*before, call, *after]


class SparseGroup:
    """One table with a sparse gradient.

    Parameters
    ----------
    position : int
        The position of its pair in the list.
    variable : ndarray or Variable
        The table as it was given.
    member : Member
        Its memory and slots.
    form : Form
    row : int
        The row of the table in the numbers of a step.
    """

    def __init__(self, position: int, variable: Any, member: Member, form: Form, row: int) -> None:
        self.position = position
        self._row = row
        self.positions = np.array([position])
        self.variable = variable
        self.entry: Entry = member.entry
        self.precision: Precision = member.entry.precision
        self.table = Table(variable, member, form)
        self.kinds = self.table.kinds

    def bind(self, gradient: IndexedSlices, written: NDArray[np.int64]) -> Occurrences:
        """Check a gradient and find its rows; writes only scratch memory.

        Parameters
        ----------
        gradient : IndexedSlices
        written : int64 array
            The memory that the step writes; values that overlap it are copied.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            See `rmsjit.steps.pairs.sparse_gradient`.
        IndexError
            If an index is out of range.
        """
        values, indices = sparse_gradient(gradient, self.variable, self.position)
        values = converted(np.ascontiguousarray(values), self.table.array.dtype)
        if not values.flags.aligned or span_that_meets(written, values) is not None:
            values = values.copy()
        marks = self.entry.take_scratch(self.table.rows)
        occurrences = found_rows(values, indices, marks)
        self.entry.give_scratch(marks)
        if occurrences.distinct < 0:
            raise index_error(gradient, -1 - occurrences.distinct, self.variable, self.position)
        return occurrences

    def calls(
        self, binding: Binding, occurrences: Occurrences, factor: float, bins: int, exact: bool
    ) -> list[Call]:
        """The calls that apply the rule to every row that the gradient names.

        Parameters
        ----------
        binding : Binding
            The numbers of the step.
        occurrences : Occurrences
        factor : float
            What the gradient is multiplied by: the scale of the step and of clipping by norm.
        bins : int
            The number of threads.
        exact : bool
            Whether the rows have a clock.
        """
        clock = self.entry.clock if exact else None
        calls: list[Call] = []
        if occurrences.distinct and self.table.width:
            calls = self._updates(binding, occurrences, factor, bins, clock)
        if clock is not None:
            lapses = binding.lapse_numbers[self.kinds.computing]
            calls.append(tick_call(clock, lapses[self._row]))
        return calls

    def _updates(
        self,
        binding: Binding,
        occurrences: Occurrences,
        factor: float,
        bins: int,
        clock: Clock | None,
    ) -> list[Call]:
        table = self.table
        if table.in_place:
            return [self._update(table.addresses, binding, occurrences, factor, bins, clock)]
        named, places = np.unique(occurrences.indices, return_inverse=True)
        places = places.reshape(-1).astype(np.int64)
        compact = found_rows(occurrences.values, places, np.zeros(len(named), np.int32))
        addresses, before, after = table.on_copies(named)
        own = None if clock is None else clock.of_rows(named)
        if own is not None and clock is not None:
            # The act may tick the clock before this call, so the copy reads `now` then.
            before.append(copy_call(clock.done, own.done, False, named))
            before.append(copy_call(clock.words[:1], own.words[:1], False))
            after.append(copy_call(clock.done, own.done, True, named))
        return [*before, self._update(addresses, binding, compact, factor, bins, own), *after]

    def _update(
        self,
        addresses: NDArray[np.int64],
        binding: Binding,
        occurrences: Occurrences,
        factor: float,
        bins: int,
        clock: Clock | None,
    ) -> Call:
        kinds, width = self.kinds, self.table.width
        numbers, noise = binding.numbers[kinds.computing][self._row], binding.noise
        cuts = np.empty(bins + 1, np.int64)
        totals = np.empty((bins, width + _APART), kinds.total)
        factors = np.array([factor], kinds.computing)
        words = [0] * rows.WORDS
        words[rows.BINS], words[rows.DISTINCT] = bins, occurrences.distinct
        words[rows.INDICES] = address_of(occurrences.indices)
        words[rows.STARTS] = address_of(occurrences.starts)
        words[rows.ORDER] = address_of(occurrences.order)
        words[rows.VALUES] = address_of(occurrences.values)
        words[rows.CUTS], words[rows.TABLE] = address_of(cuts), address_of(addresses)
        words[rows.WIDTH], words[rows.NUMBERS] = width, address_of(numbers)
        words[rows.FACTOR] = address_of(factors)
        words[rows.TOTALS], words[rows.TOTAL_WIDTH] = address_of(totals), totals.shape[1]
        words[rows.CLOCK] = 0 if clock is None else address_of(clock.words)
        words[rows.NOISE], words[rows.PLACE] = address_of(noise), self.position
        kernel = loader.update_rows(self.table.form, kinds, clock is not None)
        alive = occurrences, cuts, totals, factors, addresses, numbers, noise, clock
        return Call(kernel, np.array(words), (*alive, self.table.arrays))


def tick_call(clock: Clock, numbers: NDArray[Any]) -> Call:
    """The call that counts a step; `numbers` come from `rmsjit.rule.numbers.lapsed`."""
    words = np.array([1, address_of(clock.words), address_of(numbers)], np.int64)
    return Call(loader.tick(), words, (clock, numbers))


def reset_call(clock: Clock) -> Call:
    """The call that resets a clock, once all rows are up to date."""
    words = np.array([1, address_of(clock.words), 0], np.int64)
    return Call(loader.reset(), words, clock)
