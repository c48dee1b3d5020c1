"""A plan: a list of variables validated and laid out once, and the kernel calls that update them.

A later step with the same variables only reads the addresses of their gradients, which compiled
code checks on the way, and makes one call for all variables of a dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from rmsjit.variables import Variable, array_of

PARALLEL_BYTES = 1 << 20  # of variables and slots: below it, starting threads costs more


class Member(NamedTuple):
    """A variable's memory and the slots that the rule uses on it."""

    entry: Entry
    slots: dict[str, NDArray[Any]]


class BoundStep(NamedTuple):
    """The gradients of one step, checked, as addresses that kernels can read.

    Attributes
    ----------
    addresses : int64 array, shape (pairs, 1)
    alive : object
        Keeps the memory behind the addresses.
    """

    addresses: NDArray[np.int64]
    alive: Any


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
        self.precision: Precision = members[0].entry.precision
        self._form = form
        self._is_all = is_all
        self._sizes = np.array([member.entry.canonical.size for member in members], np.int64)
        self._itemsize = members[0].entry.canonical.itemsize
        self._table = self._addresses_of_state()
        self._sample = np.empty(0, self.precision.storage)
        self._ones = np.ones(len(members), self.precision.computing)
        self._mg = dense.MG if form.centered else None
        self._momentum = dense.MOMENTUM if form.has_momentum else None
        gradient_bytes = int(self._sizes.sum()) * self._itemsize
        self._norm_is_large = gradient_bytes >= PARALLEL_BYTES
        self._update_is_large = gradient_bytes * (1 + len(form.slots)) >= PARALLEL_BYTES
        self._copied_rows = [row for row, member in enumerate(members) if not member.entry.dense]
        self._work: dict[int, tuple[loader.Kernel, Partition]] = {}
        self._norm_work: dict[int, tuple[loader.Kernel, Partition]] = {}

    def _addresses_of_state(self) -> NDArray[np.int64]:
        table = np.zeros((len(self.members), dense.TABLE_COLUMNS), np.int64)
        columns = {RMS: dense.RMS, MG: dense.MG, MOMENTUM: dense.MOMENTUM}
        for row, (entry, slots) in zip(table, self.members, strict=True):
            row[dense.VARIABLE] = address_of(entry.canonical)
            for slot in self._form.slots:
                row[columns[slot]] = address_of(slots[slot])
        return table

    def squares(self, addresses: NDArray[np.int64], bound: float, limit: int) -> NDArray[Any]:
        """The squared norm of each gradient, in float64, its values clipped to `bound` first."""
        granted = threads.acquire(limit) if self._norm_is_large else 1
        try:
            kernel, part = self._norm_work.get(granted) or self._plan_norms(granted)
            sums = np.empty(len(part.pieces))
            kernel(
                self._own(addresses),
                part.pieces,
                part.bins,
                np.array([bound], self.precision.computing),
                np.empty(0, self.precision.real),
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
        """Apply the rule to every variable of the group.

        Parameters
        ----------
        addresses : int64 array, shape (pairs, 1)
            Of the gradients of the whole step.
        factors : float64 array, shape (pairs,), or None
            What to multiply each gradient of the step by.
        numbers : ndarray
            See `rmsjit.hyperparameters.StepNumbers.packed`.
        limit : int
            The most threads.
        """
        scales = self._ones
        if factors is not None:
            scales = factors[self.positions].astype(self.precision.computing)
        table, copies = self._table_of_copies() if self._copied_rows else (self._table, [])
        granted = threads.acquire(limit) if self._update_is_large else 1
        try:
            kernel, part = self._work.get(granted) or self._plan_update(granted)
            kernel(
                table,
                self._own(addresses),
                part.pieces,
                part.bins,
                scales,
                numbers,
                self._sample,
                self._mg,
                self._momentum,
            )
        finally:
            threads.release(granted)
        for entry, copy in copies:
            entry.canonical[...] = copy

    def _own(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        return addresses if self._is_all else addresses[self.positions]

    def _table_of_copies(self) -> tuple[NDArray[np.int64], list[tuple[Entry, NDArray[Any]]]]:
        """Contiguous copies of variables that do not lie contiguously, and a table of them."""
        table, copies = self._table.copy(), []
        for row in self._copied_rows:
            entry = self.members[row].entry
            copy = np.ascontiguousarray(entry.canonical)
            table[row, dense.VARIABLE] = address_of(copy)
            copies.append((entry, copy))
        return table, copies

    def _plan_update(self, bins: int) -> tuple[loader.Kernel, Partition]:
        form = self._form
        kernel = loader.update_dense(self.precision, form.centered, form.has_momentum, bins > 1)
        part = cut_evenly(self._sizes, self._table[:, dense.VARIABLE], self._itemsize, bins)
        self._work[bins] = kernel, part
        return kernel, part

    def _plan_norms(self, bins: int) -> tuple[loader.Kernel, Partition]:
        precision = self.precision
        kernel = loader.sums_of_squares(precision.real, precision.computing, bins > 1)
        part = cut_by_length(self._sizes * precision.parts, NORM_PIECE, bins)
        self._norm_work[bins] = kernel, part
        return kernel, part


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
    constrained : list of Variable
        Those to which a constraint applies after the update.
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
        self._variables = tuple(variables)
        self._members = tuple(members)
        pairs = list(zip(variables, members, strict=True))
        self.dropped = ", ".join(
            naming(variable, k) for k, (variable, member) in enumerate(pairs) if member is None
        )
        self.constrained = [
            variable
            for variable, member in pairs
            if member is not None and isinstance(variable, Variable) and variable.constraint
        ]
        present = [member for member in members if member is not None]
        self.precisions = {member.entry.precision for member in present}
        self._written = _written_spans(present)
        groups = _grouped(members)
        self.groups = [
            DenseGroup(
                positions,
                [member for member in map(members.__getitem__, positions) if member is not None],
                form,
                is_all=len(positions) == len(variables),
            )
            for positions in groups.values()
        ]
        once = {position for (turn, _), group in groups.items() if turn == 0 for position in group}
        self._expected = self._expected_headers(kinds, once)
        self._count = len(variables)
        only_arrays = all(
            issubclass(kind, np.ndarray)
            for kind, member in zip(kinds, members, strict=True)
            if member is not None
        )
        self._read = loader.read_step() if only_arrays else None

    def _expected_headers(self, kinds: Sequence[type], first_turn: set[int]) -> NDArray[np.int64]:
        """What `rmsjit.kernels.arrays.read_step` must find.

        A gradient may lie in its own variable's memory only in the first turn: later the variable
        has changed already.
        """
        owners = [array_of(variable) for variable in self._variables]
        most = max(owner.ndim for owner in owners)
        expected = np.zeros((len(owners), arrays.FIRST_DIMENSION + most), np.int64)
        for k, (row, owner) in enumerate(zip(expected, owners, strict=True)):
            member = self._members[k]
            row[arrays.VARIABLE_OBJECT] = id(self._variables[k])
            row[arrays.KIND] = id(kinds[k])
            row[arrays.NDIM] = arrays.NO_ARRAY
            if member is None:
                continue
            row[arrays.OWNER] = id(owner)
            row[arrays.OWNER_DATA] = address_of(owner)
            row[arrays.OWNER_MEMORY] = address_of(member.entry.canonical) if k in first_turn else 0
            row[arrays.DTYPE] = id(owner.dtype) if owner.flags.forc else 0  # 0: copied each time
            order = arrays.C_CONTIGUOUS if owner.flags.c_contiguous else arrays.F_CONTIGUOUS
            row[arrays.FLAGS] = order | arrays.ALIGNED
            row[arrays.NBYTES] = owner.nbytes
            row[arrays.NDIM] = owner.ndim
            row[arrays.FIRST_DIMENSION : arrays.FIRST_DIMENSION + owner.ndim] = owner.shape
        return expected

    def bind_unchanged(
        self, gradients: tuple[Any, ...], variables: tuple[Any, ...]
    ) -> BoundStep | None:
        """Bind a step whose variables and kinds of gradients are this plan's, else None."""
        if self._read is None or len(gradients) != self._count:
            return None
        addresses = np.empty((self._count, 1), np.int64)
        if self._read(id(gradients), id(variables), self._expected, self._written, addresses) < 0:
            return BoundStep(addresses, gradients)
        return None

    def bind(self, gradients: Sequence[Any]) -> BoundStep:
        """Check the gradients one by one, copying those that kernels can't read as they lie.

        Raises
        ------
        TypeError, ValueError
            If a gradient or a variable is not as it must be.
        StalePlanError
            If a variable's memory has moved.
        """
        addresses = np.zeros((self._count, 1), np.int64)
        alive = []
        for k, member in enumerate(self._members):
            if member is None:
                continue
            canonical = self._canonical_gradient(gradients[k], k, member.entry)
            if not self._readable(canonical, k, member.entry):
                canonical = _copied(canonical, member.entry.canonical.dtype)
            addresses[k, 0] = address_of(canonical)
            alive.append(canonical)
        return BoundStep(addresses, alive)

    def _canonical_gradient(self, gradient: Any, position: int, entry: Entry) -> NDArray[Any]:
        variable = self._variables[position]
        check_variable(variable, position)
        owner = array_of(variable)
        layout = layout_of(owner)
        if memory_key(layout.canonical(owner)) != entry.key:
            raise StalePlanError(naming(variable, position))
        return layout.canonical(dense_gradient(gradient, variable, position))

    def _readable(self, canonical: NDArray[Any], position: int, entry: Entry) -> bool:
        """Whether kernels can read a gradient as it lies; see `rmsjit.kernels.arrays`."""
        if canonical.dtype != entry.canonical.dtype or not is_dense(canonical):
            return False
        start = address_of(canonical)
        end = start + canonical.nbytes
        last = int(np.searchsorted(self._written[0], end - 1, side="right")) - 1
        if start == end or last < 0 or self._written[1, last] <= start:
            return True
        own = self._expected[position, arrays.OWNER_MEMORY]
        return start == own and (start, end) == tuple(self._written[:, last])


def identity_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve again."""
    return (tuple(map(id, variables)), tuple(kinds))


def _copied(canonical: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    copy = np.empty(canonical.shape, dtype)
    np.copyto(copy, canonical, casting="same_kind")
    return copy


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
