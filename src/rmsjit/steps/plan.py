"""A plan: a list of variables validated and laid out once, and the kernel calls that update them.

A later step with the same variables only reads the addresses of their gradients, which compiled
code checks on the way, and makes one call for all variables of a dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, address_of, is_dense, layout_of, memory_key
from rmsjit.arrays.overlap import span_that_meets, written_spans
from rmsjit.kernels import headers
from rmsjit.rule.form import Form
from rmsjit.runtime import threads
from rmsjit.state.slots import Entry, Member
from rmsjit.steps.binding import BoundStep, Occurrences
from rmsjit.steps.dense import DenseGroup
from rmsjit.steps.headers import HeaderReader
from rmsjit.steps.pairs import dense_gradient, is_sparse, naming
from rmsjit.steps.sparse import SparseGroup
from rmsjit.variables import Variable, array_of

_NO_OCCURRENCES: dict[int, Occurrences] = {}


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
    layouts : tuple
        The same for all views of the same memory.
    dropped : list of str
        Names of the variables without a gradient.
    constrained : dict of int to Variable
        By position, the variables to which a constraint applies after each update.
    owners : list of ndarray
        The arrays of the variables.
    precisions : set of Precision
    may_need_threads : bool
        Whether a step can be enough work for more than one thread.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        members: Sequence[Member | None],
        form: Form,
    ) -> None:
        self.identity = identity_of(variables, kinds)
        self.layouts = layouts_of(variables, kinds)
        self._variables = tuple(variables)
        self._members = tuple(members)
        self.dropped = _dropped(variables, members)
        self.constrained = _constrained(variables, members)
        present = [member for member in members if member is not None]
        self.precisions = {member.entry.precision for member in present}
        self._written = written_spans(present)
        turns = _turns(members)
        self.groups = self._grouped(kinds, turns, form)
        self._sparse = [group for group in self.groups if isinstance(group, SparseGroup)]
        self._sparse_positions = {group.position for group in self._sparse}
        self._kinds = tuple(kinds)
        own_memory = [_own_memory(*pair) for pair in zip(members, turns, strict=True)]
        self._reader = HeaderReader(variables, kinds, own_memory, self._written)
        self.owners = self._reader.owners
        self._count = len(variables)
        self.may_need_threads = any(group.may_be_large for group in self.groups)

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

    def rebound(self, variables: Sequence[Any]) -> Plan:
        """This plan for other views, or other `Variable` objects, of the same memory."""
        plan = copy.copy(self)
        plan.identity = identity_of(variables, self._kinds)
        plan._variables = tuple(variables)
        plan._reader = self._reader.rebound(variables)
        plan.owners = plan._reader.owners
        plan.dropped = _dropped(variables, self._members)
        plan.constrained = _constrained(variables, self._members)
        return plan

    def prepare_threads(self, bound: BoundStep, limit: int) -> None:
        """Start threads if a step needs any; if there are none, now is the time to warn."""
        threads.prepare(limit, max(group.bytes_of(bound) for group in self.groups))

    def constrain(self, group: DenseGroup | SparseGroup) -> None:
        """Apply the constraints of a group's variables, after its update."""
        for position in group.positions:
            variable = self.constrained.get(position)
            if variable is not None:
                assert variable.constraint is not None
                variable.assign(variable.constraint(variable.array))

    def name(self, position: int) -> str:
        """How messages name a variable."""
        return naming(self._variables[position], position)

    def bind(self, gradients: tuple[Any, ...], variables: tuple[Any, ...]) -> BoundStep | None:
        """Check the gradients of a step; nothing is written.

        Returns
        -------
        BoundStep or None
            None if variables or types of gradients are not those of the plan, or if a variable
            has moved or become read-only: then another plan must be made.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            If a gradient is not as it must be; see `rmsjit.steps.pairs`.
        """
        if len(gradients) != self._count:
            return None
        addresses = np.empty((self._count, 1), np.int64)
        others = self._reader.read(gradients, variables, addresses)
        if others == 0 and not self._sparse:  # the case that must cost next to nothing
            return BoundStep(addresses, _NO_OCCURRENCES, gradients)
        if others == headers.NOT_AS_EXPECTED:
            return None
        copies = self._bind_others(gradients, addresses)
        occurrences = {
            group.position: group.bind(gradients[group.position], self._written)
            for group in self._sparse
        }
        return BoundStep(addresses, occurrences, (gradients, copies))

    def _bind_others(
        self, gradients: Sequence[Any], addresses: NDArray[np.int64]
    ) -> list[NDArray[Any]]:
        """Check the dense gradients that kernels can't read as they lie, and copy them."""
        copies = []
        for k in np.flatnonzero(addresses[:, 0] == headers.NOT_READABLE).tolist():
            member = self._members[k]
            if member is None or k in self._sparse_positions:
                continue
            gradient = dense_gradient(gradients[k], self._variables[k], k)
            canonical = layout_of(self.owners[k]).canonical(gradient)
            if not self._readable(canonical, k, member.entry):
                canonical = _copied(canonical, member.entry.canonical.dtype)
            addresses[k, 0] = address_of(canonical)
            copies.append(canonical)
        return copies

    def _readable(self, canonical: NDArray[Any], position: int, entry: Entry) -> bool:
        """Whether kernels can read a gradient as it lies; see `rmsjit.kernels.headers`."""
        if canonical.dtype != entry.canonical.dtype or not is_dense(canonical):
            return False
        span = span_that_meets(self._written, canonical)
        own = self._reader.own_memory[position]
        start = address_of(canonical)
        return span is None or (start == own and span == (start, start + canonical.nbytes))


def layouts_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve for other views of the same memory."""
    return (tuple(map(_view_of, variables)), tuple(kinds))


def _view_of(variable: Any) -> tuple[Any, ...]:
    array = array_of(variable)
    constrained = isinstance(variable, Variable) and variable.constraint is not None
    key = memory_key(layout_of(array).canonical(array))
    return (key, array.shape, array.strides, constrained)


def identity_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve again."""
    return (tuple(map(id, variables)), tuple(kinds))


def _own_memory(member: Member | None, turn: int) -> int | None:
    """Where a gradient may lie although the step writes there: in its own variable.

    Only in the first turn, since later the variable has changed already.
    """
    if member is None:
        return None
    return 0 if turn else address_of(member.entry.canonical)


def _dropped(variables: Sequence[Any], members: Sequence[Member | None]) -> list[str]:
    pairs = enumerate(zip(variables, members, strict=True))
    return [naming(variable, k) for k, (variable, member) in pairs if member is None]


def _constrained(variables: Sequence[Any], members: Sequence[Member | None]) -> dict[int, Variable]:
    return {
        k: variable
        for k, (variable, member) in enumerate(zip(variables, members, strict=True))
        if member is not None and isinstance(variable, Variable) and variable.constraint
    }


def _copied(canonical: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    copy = np.empty(canonical.shape, dtype)
    with np.errstate(over="ignore"):  # a number too large for the dtype becomes infinite
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
