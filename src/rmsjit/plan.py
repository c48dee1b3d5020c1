"""A plan: a list of variables validated and laid out once, and the kernel calls that update them.

Later steps with the same variables only read the addresses of their gradients, which compiled code
checks on the way, and make one call for all variables of a dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.dtypes import Precision
from rmsjit.forms import MG, MOMENTUM, RMS, Form
from rmsjit.kernels import arrays, dense, loader
from rmsjit.kernels.norms import NORM_PIECE
from rmsjit.layout import Key, address_of, is_dense, layout_of, memory_key, span_of
from rmsjit.pairs import check_variable, dense_gradient, naming
from rmsjit.partition import Partition, cut_by_length, cut_evenly
from rmsjit.runtime import threads
from rmsjit.slots import Entry, StalePlanError
from rmsjit.variables import array_of

PARALLEL_BYTES = 1 << 20  # of variables and slots: below it, starting threads costs more
NOT_IN_PLACE = -1  # a number of dimensions that no array has: always staged


class Member(NamedTuple):
    """A variable's memory and the slots that the rule uses on it."""

    entry: Entry
    slots: dict[str, NDArray[Any]]


class DenseGroup:
    """Variables of one dtype with dense gradients, none of them twice, updated in one call.

    Parameters
    ----------
    positions : sequence of int
        Where their pairs stand in the list.
    variables : sequence
        The objects as they were given.
    members : sequence of Member
        Their memory and slots.
    form : Form
    written : int64 array, shape (2, n)
        All memory that the step writes, as ascending disjoint spans.
    first_round : bool
        False where an earlier group of the same step has updated some of these variables.
    """

    def __init__(
        self,
        positions: Sequence[int],
        variables: Sequence[Any],
        members: Sequence[Member],
        form: Form,
        written: NDArray[np.int64],
        first_round: bool,
    ) -> None:
        self.positions = tuple(positions)
        self.variables = tuple(variables)
        self.members = tuple(members)
        self.precision: Precision = members[0].entry.precision
        self._dtype = members[0].entry.canonical.dtype
        self.form = form
        self._pick = itemgetter(*positions)
        self._written = written
        self._own_memory_readable = first_round
        self._sizes = np.array([member.entry.canonical.size for member in members], np.int64)
        self._table = self._addresses_of_state()
        self._expected = self._expected_headers()
        self._sample = np.empty(0, self.precision.storage)
        self._ones = np.ones(len(members), self.precision.computing)
        self._columns = (
            dense.MG if form.centered else None,
            dense.MOMENTUM if form.has_momentum else None,
        )
        self._bytes = int(self._sizes.sum()) * self._dtype.itemsize * (1 + len(form.slots))
        self._staged_rows = [row for row, member in enumerate(members) if not member.entry.dense]
        self._partitions: dict[tuple[int, int], Partition] = {}

    def _addresses_of_state(self) -> NDArray[np.int64]:
        table = np.zeros((len(self.members), dense.TABLE_COLUMNS), np.int64)
        columns = {RMS: dense.RMS, MG: dense.MG, MOMENTUM: dense.MOMENTUM}
        for row, (entry, slots) in enumerate(self.members):
            table[row, dense.VARIABLE] = address_of(entry.canonical)
            for slot in self.form.slots:
                table[row, columns[slot]] = address_of(slots[slot])
        return table

    def _expected_headers(self) -> NDArray[np.int64]:
        owners = [array_of(variable) for variable in self.variables]
        most = max(owner.ndim for owner in owners)
        expected = np.zeros((len(owners), arrays.FIRST_DIMENSION + most), np.int64)
        for row, owner in zip(expected, owners, strict=True):
            order = arrays.C_CONTIGUOUS if owner.flags.c_contiguous else arrays.F_CONTIGUOUS
            row[arrays.OWNER] = id(owner)
            row[arrays.OWNER_DATA] = address_of(owner)
            row[arrays.DTYPE] = id(owner.dtype)
            row[arrays.FLAGS] = order | arrays.ALIGNED
            row[arrays.NBYTES] = owner.nbytes
            row[arrays.NDIM] = owner.ndim if owner.flags.forc else NOT_IN_PLACE
            row[arrays.FIRST_DIMENSION : arrays.FIRST_DIMENSION + owner.ndim] = owner.shape
        return expected

    def bind(self, gradients: Sequence[Any], in_place: bool) -> BoundGroup:
        """Read and check the gradients of this group.

        Parameters
        ----------
        gradients : sequence
            Of the whole step.
        in_place : bool
            Whether all of them are known to be arrays.
        """
        picked = self._pick(gradients) if len(self.positions) > 1 else (self._pick(gradients),)
        addresses = np.empty((len(picked), 1), np.int64)
        if in_place:
            read = loader.read_addresses()
            if read is not None:
                objects = np.fromiter(map(id, picked), np.int64, len(picked))
                bad = read(objects, self._expected, self._table, self._written, addresses)
                if bad < 0:
                    return BoundGroup(self, addresses, picked)
        return BoundGroup(self, addresses, self._bind_each(picked, addresses))

    def _bind_each(
        self, gradients: Sequence[Any], addresses: NDArray[np.int64]
    ) -> list[NDArray[Any]]:
        """The same one by one, copying a gradient that kernels can't read as it lies."""
        readable = []
        for row, gradient in enumerate(gradients):
            variable, position = self.variables[row], self.positions[row]
            check_variable(variable, position)
            owner = array_of(variable)
            layout = layout_of(owner)
            if memory_key(layout.canonical(owner)) != self.members[row].entry.key:
                raise StalePlanError(naming(variable, position))
            canonical = layout.canonical(dense_gradient(gradient, variable, position))
            if not self._reads_in_place(canonical, row):
                canonical = self._copied(canonical)
            addresses[row, 0] = address_of(canonical)
            readable.append(canonical)
        return readable

    def _reads_in_place(self, canonical: NDArray[Any], row: int) -> bool:
        if canonical.dtype != self._dtype or not is_dense(canonical):
            return False
        start = address_of(canonical)
        end = start + canonical.nbytes
        last = int(np.searchsorted(self._written[0], end - 1, side="right")) - 1
        if last < 0 or canonical.size == 0 or self._written[1, last] <= start:
            return True
        own = (self._table[row, dense.VARIABLE], self._table[row, dense.VARIABLE] + end - start)
        span = tuple(self._written[:, last])
        return self._own_memory_readable and (start, end) == own == span

    def _copied(self, canonical: NDArray[Any]) -> NDArray[Any]:
        copy = np.empty(canonical.shape, self._dtype)
        np.copyto(copy, canonical, casting="same_kind")
        return copy

    def squares(self, addresses: NDArray[np.int64], bound: float, limit: int) -> NDArray[Any]:
        """The squared norm of each gradient, in float64."""
        precision = self.precision
        wanted = self._threads_for(int(self._sizes.sum()) * self._dtype.itemsize, limit)
        granted = threads.acquire(wanted)
        try:
            part = self._norm_partition(granted)
            sums = np.empty(len(part.pieces))
            kernel = loader.sums_of_squares(precision.real, precision.computing, granted > 1)
            kernel(
                addresses,
                part.pieces,
                part.bins,
                np.array([bound], precision.computing),
                np.empty(0, precision.real),
                sums,
            )
        finally:
            threads.release(granted)
        # Adds in the order of the pieces, whatever thread has summed them.
        return np.bincount(part.pieces[:, 0], weights=sums, minlength=len(self.members))

    def update(
        self,
        addresses: NDArray[np.int64],
        factors: NDArray[Any] | None,
        numbers: NDArray[Any],
        limit: int,
    ) -> None:
        """Apply the rule to every variable of the group."""
        table, staged = self._table, []
        if self._staged_rows:
            table, staged = self._staged_table()
        scales = self._ones if factors is None else factors.astype(self.precision.computing)
        granted = threads.acquire(self._threads_for(self._bytes, limit))
        try:
            part = self._partition(granted)
            kernel = loader.update_dense(
                self.precision, self.form.centered, self.form.has_momentum, granted > 1
            )
            kernel(
                table,
                addresses,
                part.pieces,
                part.bins,
                scales,
                numbers,
                self._sample,
                *self._columns,
            )
        finally:
            threads.release(granted)
        for row, copy in staged:
            self.members[row].entry.canonical[...] = copy

    def _staged_table(self) -> tuple[NDArray[np.int64], list[tuple[int, NDArray[Any]]]]:
        """Contiguous copies of variables that do not lie contiguously, and a table of them."""
        table = self._table.copy()
        staged = []
        for row in self._staged_rows:
            copy = np.ascontiguousarray(self.members[row].entry.canonical)
            table[row, dense.VARIABLE] = address_of(copy)
            staged.append((row, copy))
        return table, staged

    def _threads_for(self, nbytes: int, limit: int) -> int:
        return limit if nbytes >= PARALLEL_BYTES else 1

    def _partition(self, bins: int) -> Partition:
        part = self._partitions.get((bins, 0))
        if part is None:
            part = cut_evenly(self._sizes, self._table[:, dense.VARIABLE], self._dtype.itemsize, bins)
            self._partitions[bins, 0] = part
        return part

    def _norm_partition(self, bins: int) -> Partition:
        part = self._partitions.get((bins, NORM_PIECE))
        if part is None:
            part = cut_by_length(self._sizes * self.precision.parts, NORM_PIECE, bins)
            self._partitions[bins, NORM_PIECE] = part
        return part


class BoundGroup:
    """A group with the gradients of one step, checked and alive."""

    __slots__ = ("_addresses", "_alive", "_group")

    def __init__(
        self, group: DenseGroup, addresses: NDArray[np.int64], alive: Sequence[Any]
    ) -> None:
        self._group = group
        self._addresses = addresses
        self._alive = alive

    @property
    def positions(self) -> tuple[int, ...]:
        return self._group.positions

    @property
    def precision(self) -> Precision:
        return self._group.precision

    def squares(self, bound: float, limit: int) -> NDArray[Any]:
        """The squared norm of each gradient, its values clipped to `bound` first."""
        return self._group.squares(self._addresses, bound, limit)

    def update(self, factors: NDArray[Any] | None, numbers: NDArray[Any], limit: int) -> None:
        """Apply the rule, every gradient times its factor."""
        self._group.update(self._addresses, factors, numbers, limit)


class Plan:
    """All groups of one list of variables.

    Parameters
    ----------
    variables : sequence
        As they were given.
    kinds : sequence of type
        The types of their gradients.
    members : sequence of Member or None
        Their memory and slots; None where there is no gradient.
    form : Form

    Attributes
    ----------
    identity : tuple
        The ids of the variables and the types of their gradients, by which a plan is found again;
        the plan keeps the variables alive, so that no id can become another's.
    dropped : str
        Names of the variables without a gradient, empty where there are none.
    precisions : set of Precision
    """

    def __init__(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        members: Sequence[Member | None],
        form: Form,
    ) -> None:
        self.identity = identity_of(variables, kinds)
        self.variables = tuple(variables)
        present = [member for member in members if member is not None]
        self.dropped = ", ".join(
            naming(variable, position)
            for position, (variable, member) in enumerate(zip(variables, members, strict=True))
            if member is None
        )
        self.precisions = {member.entry.precision for member in present}
        self.in_place = all(
            issubclass(kind, np.ndarray)
            for kind, member in zip(kinds, members, strict=True)
            if member is not None
        )
        written = _written_spans(present)
        self.groups = [
            DenseGroup(
                positions,
                [variables[position] for position in positions],
                [member for member in map(members.__getitem__, positions) if member is not None],
                form,
                written,
                first_round=turn == 0,
            )
            for (turn, _), positions in _grouped(members).items()
        ]

    def bind(self, gradients: Sequence[Any]) -> list[BoundGroup]:
        """Check the gradients of a step; nothing has been written when an error is raised."""
        return [group.bind(gradients, self.in_place) for group in self.groups]


def identity_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve again."""
    return (tuple(map(id, variables)), tuple(kinds))


def _grouped(members: Sequence[Member | None]) -> dict[tuple[int, str], list[int]]:
    """Positions by turn and dtype: the second occurrence of a variable has its second turn."""
    turns: dict[Key, int] = {}
    groups: dict[tuple[int, str], list[int]] = {}
    for position, member in enumerate(members):
        if member is None:
            continue
        entry = member.entry
        turn = turns.get(entry.key, 0)
        turns[entry.key] = turn + 1
        groups.setdefault((turn, entry.precision.name), []).append(position)
    return dict(sorted(groups.items(), key=lambda group: group[0][0]))


def _written_spans(members: Sequence[Member]) -> NDArray[np.int64]:
    """The memory of variables and slots, as ascending spans of which none meets another."""
    spans = [member.entry.span for member in members]
    spans += [span_of(value) for member in members for value in member.slots.values()]
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, np.int64).reshape(-1, 2).T.copy()
