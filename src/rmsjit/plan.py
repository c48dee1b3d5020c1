"""A plan: a list of variables validated and laid out once, and the kernel calls that update them.

A later step with the same variables only reads the addresses of their gradients, which compiled
code checks on the way, and makes one call for all variables of a dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.bound import BoundStep, Occurrences
from rmsjit.dense_group import DenseGroup
from rmsjit.forms import Form
from rmsjit.kernels import arrays, loader
from rmsjit.layout import Key, Layout, address_of, is_dense, layout_of, memory_key
from rmsjit.pairs import check_variable, dense_gradient, is_sparse, naming
from rmsjit.slots import Entry, Member, StalePlanError
from rmsjit.spans import span_that_meets, written_spans
from rmsjit.sparse_group import SparseGroup
from rmsjit.variables import Variable, array_of


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
    dropped : list of str
        Names of the variables without a gradient.
    constrained : list of Variable
        Those to which a constraint applies after the update.
    owners : list of ndarray
        The arrays of the variables.
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
        self.owners = [array_of(variable) for variable in variables]
        self._members = tuple(members)
        pairs = list(zip(variables, members, strict=True))
        self.dropped = [
            naming(variable, k) for k, (variable, member) in enumerate(pairs) if member is None
        ]
        self.constrained = [
            variable
            for variable, member in pairs
            if member is not None and isinstance(variable, Variable) and variable.constraint
        ]
        present = [member for member in members if member is not None]
        self.precisions = {member.entry.precision for member in present}
        self._written = written_spans(present)
        turns = _turns(members)
        self.groups = self._grouped(kinds, turns, form)
        self._sparse = [group for group in self.groups if isinstance(group, SparseGroup)]
        self._sparse_positions = {group.position for group in self._sparse}
        once = {position for position, turn in enumerate(turns) if turn == 0}
        self._expected = self._expected_headers(kinds, once)
        self._count = len(variables)
        as_they_are = all(
            is_sparse(kind) or issubclass(kind, np.ndarray)
            for kind, member in zip(kinds, members, strict=True)
            if member is not None
        )
        self._read = loader.read_step() if as_they_are else None

    def _grouped(
        self, kinds: Sequence[type], turns: Sequence[int], form: Form
    ) -> list[DenseGroup | SparseGroup]:
        """A group for each dtype of each turn, and for each sparse gradient, in order of turns."""
        together: dict[tuple[int, Any], list[int]] = {}
        for position, member in enumerate(self._members):
            if member is not None:
                sort = position if is_sparse(kinds[position]) else member.entry.precision.name
                together.setdefault((turns[position], sort), []).append(position)
        groups: list[DenseGroup | SparseGroup] = []
        for (_, sort), positions in sorted(together.items(), key=lambda item: item[0][0]):
            members = [member for member in map(self._members.__getitem__, positions) if member]
            if isinstance(sort, int):
                groups.append(SparseGroup(sort, self._variables[sort], members[0], form))
            else:
                is_all = len(positions) == len(self._variables)
                groups.append(DenseGroup(positions, members, form, is_all))
        return groups

    def _expected_headers(self, kinds: Sequence[type], first_turn: set[int]) -> NDArray[np.int64]:
        """What `rmsjit.kernels.arrays.read_step` must find.

        A gradient may lie in its own variable's memory only in the first turn: later the variable
        has changed already.
        """
        owners = self.owners
        most = max(owner.ndim for owner in owners)
        expected = np.zeros((len(owners), arrays.FIRST_DIMENSION + most), np.int64)
        for k, (row, owner) in enumerate(zip(expected, owners, strict=True)):
            member = self._members[k]
            row[arrays.VARIABLE_OBJECT] = id(self._variables[k])
            row[arrays.KIND] = id(kinds[k])
            row[arrays.NDIM] = arrays.NO_ARRAY
            if member is None or is_sparse(kinds[k]):
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

    def name(self, position: int) -> str:
        """How messages name a variable."""
        return naming(self._variables[position], position)

    def bind_unchanged(
        self, gradients: tuple[Any, ...], variables: tuple[Any, ...]
    ) -> BoundStep | None:
        """Bind a step whose variables and kinds of gradients are this plan's, else None."""
        if self._read is None or len(gradients) != self._count:
            return None
        addresses = np.empty((self._count, 1), np.int64)
        if self._read(id(gradients), id(variables), self._expected, self._written, addresses) >= 0:
            return None
        return BoundStep(addresses, self._occurrences(gradients), gradients)

    def bind(self, gradients: Sequence[Any]) -> BoundStep:
        """Check the gradients one by one, copying those that kernels can't read as they lie.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            If a gradient or a variable is not as it must be.
        StalePlanError
            If a variable's memory has moved.
        """
        addresses = np.zeros((self._count, 1), np.int64)
        alive = []
        for k, member in enumerate(self._members):
            if member is None:
                continue
            layout = self._checked_layout(k, member.entry)
            if k in self._sparse_positions:
                continue
            canonical = layout.canonical(dense_gradient(gradients[k], self._variables[k], k))
            if not self._readable(canonical, k, member.entry):
                canonical = _copied(canonical, member.entry.canonical.dtype)
            addresses[k, 0] = address_of(canonical)
            alive.append(canonical)
        return BoundStep(addresses, self._occurrences(gradients), alive)

    def _occurrences(self, gradients: Sequence[Any]) -> dict[int, Occurrences]:
        found = {}
        for group in self._sparse:
            position = group.position
            self._checked_layout(position, group.members[0].entry)
            found[position] = group.bind(gradients[position], self._written)
        return found

    def _checked_layout(self, position: int, entry: Entry) -> Layout:
        """The layout of a variable that is still good and where it was."""
        variable = self._variables[position]
        check_variable(variable, position)
        owner = array_of(variable)
        layout = layout_of(owner)
        if memory_key(layout.canonical(owner)) != entry.key:
            raise StalePlanError(naming(variable, position))
        return layout

    def _readable(self, canonical: NDArray[Any], position: int, entry: Entry) -> bool:
        """Whether kernels can read a gradient as it lies; see `rmsjit.kernels.arrays`."""
        if canonical.dtype != entry.canonical.dtype or not is_dense(canonical):
            return False
        span = span_that_meets(self._written, canonical)
        own = self._expected[position, arrays.OWNER_MEMORY]
        start = address_of(canonical)
        return span is None or (start == own and span == (start, start + canonical.nbytes))


def identity_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve again."""
    return (tuple(map(id, variables)), tuple(kinds))


def _copied(canonical: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    copy = np.empty(canonical.shape, dtype)
    np.copyto(copy, canonical, casting="same_kind")
    return copy


def _turns(members: Sequence[Member | None]) -> list[int]:
    """For each pair, how many earlier ones have the same variable: these come first."""
    seen: dict[Key, int] = {}
    turns = []
    for member in members:
        turn = seen.get(member.entry.key, 0) if member else 0
        if member:
            seen[member.entry.key] = turn + 1
        turns.append(turn)
    return turns
