"""Updating all dense variables of one dtype in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import Key, address_of
from rmsjit.kernels import dense, loader
from rmsjit.rule.form import Form
from rmsjit.runtime import threads
from rmsjit.state.slots import Entry, Member
from rmsjit.steps.binding import BoundStep
from rmsjit.steps.norms import NormPass, Norms
from rmsjit.steps.partition import Partition, backwards, cut_evenly
from rmsjit.steps.table import table_of

BACKWARD_PIECE = 1 << 15  # elements, small beside any cache that is worth running backwards for


class DenseGroup:
    """Variables of one dtype, none of them twice, that one call updates.

    Parameters
    ----------
    positions : sequence of int
        Where their pairs stand in the list.
    members : sequence of Member
        Their memory and slots.
    form : Form
    is_all : bool
        Whether the group is the whole list, in its order.
    """

    def __init__(
        self, positions: Sequence[int], members: Sequence[Member], form: Form, is_all: bool
    ) -> None:
        self.positions = list(positions)
        self.members = tuple(members)
        self.sparse = False
        self.rows_key: Key | None = None  # no clock fits a dense update
        self.precision: Precision = members[0].entry.precision
        self._form = form
        self._is_all = is_all
        self._sizes = np.array([member.entry.canonical.size for member in members], np.int64)
        self._itemsize = members[0].entry.canonical.itemsize
        self._table = table_of([m.entry.canonical for m in members], [m.slots for m in members])
        self._sample = np.empty(0, self.precision.storage)
        self._ones = np.ones(len(members), self.precision.computing)
        self._mg = dense.MG if form.centered else None
        self._momentum = dense.MOMENTUM if form.has_momentum else None
        gradient_bytes = int(self._sizes.sum()) * self._itemsize
        self._nbytes = gradient_bytes * (1 + len(form.slots))  # that an update writes
        self.may_be_large = self._nbytes >= threads.LAUNCH_BYTES
        self._norm_pass = NormPass(self._sizes, self.precision)
        self._copied_rows = [row for row, member in enumerate(members) if not member.entry.dense]
        self._work: dict[tuple[int, bool], tuple[loader.Kernel, Partition]] = {}

    def bytes_of(self, bound: BoundStep) -> int:
        """The bytes that an update writes."""
        return self._nbytes

    def norms(self, bound: BoundStep, clipvalue: float, limit: int) -> Norms:
        """Norms and finiteness of the gradients, in the order of `positions`."""
        return self._norm_pass.norms(self._own(bound.addresses), clipvalue, limit)

    def update(
        self, bound: BoundStep, factors: NDArray[Any] | None, numbers: NDArray[Any], limit: int
    ) -> None:
        """Apply the rule to every variable of the group.

        Parameters
        ----------
        bound : BoundStep
            The gradients of the whole step.
        factors : float64 array, shape (pairs,), or None
            What to multiply each gradient of the step by.
        numbers : ndarray
            See `rmsjit.hyperparameters.StepNumbers.packed`.
        limit : int
            The most threads.
        """
        addresses, scales = bound.addresses, self._ones
        if not self._is_all:
            addresses = addresses[self.positions]
        if factors is not None:
            scales = self._own(factors).astype(self.precision.computing)
        table, copies = self._table_of_copies() if self._copied_rows else (self._table, [])
        granted = 1
        if self.may_be_large:
            granted = threads.acquire(threads.worth(limit, self._nbytes), self._nbytes)
        try:
            work = granted, factors is not None
            kernel, part = self._work.get(work) or self._planned(*work)
            kernel(
                table,
                addresses,
                part.pieces,
                part.bins,
                scales,
                numbers,
                self._sample,
                self._mg,
                self._momentum,
            )
        finally:
            if granted > 1:
                threads.release(granted)
        for entry, copy in copies:
            entry.canonical[...] = copy

    def _own(self, of_pairs: NDArray[Any]) -> NDArray[Any]:
        """Those of the group, of what there is for every pair of the step."""
        return of_pairs if self._is_all else of_pairs[self.positions]

    def _table_of_copies(self) -> tuple[NDArray[np.int64], list[tuple[Entry, NDArray[Any]]]]:
        """Contiguous copies of variables that do not lie contiguously, and a table of them."""
        table, copies = self._table.copy(), []
        for row in self._copied_rows:
            entry = self.members[row].entry
            copy = np.ascontiguousarray(entry.canonical)
            table[row, dense.VARIABLE] = address_of(copy)
            copies.append((entry, copy))
        return table, copies

    def _planned(self, bins: int, after_norms: bool) -> tuple[loader.Kernel, Partition]:
        """The kernel and the pieces for a number of threads.

        After a pass over the gradients the update runs backwards, so that it begins with what that
        pass has left in the cache.
        """
        form = self._form
        kernel = loader.update_dense(self.precision, form.centered, form.has_momentum, bins > 1)
        part = cut_evenly(self._sizes, self._table[:, dense.VARIABLE], self._itemsize, bins)
        if after_norms:
            part = backwards(part, BACKWARD_PIECE)
        self._work[bins, after_norms] = kernel, part
        return kernel, part
