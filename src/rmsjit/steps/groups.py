"""Which variables of a list are updated together, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rmsjit.rule.form import Form
from rmsjit.state.entries import Member
from rmsjit.state.grouping import Assignment
from rmsjit.steps.dense import DenseGroup
from rmsjit.steps.pairs import is_sparse
from rmsjit.steps.place import turns_of
from rmsjit.steps.sparse import SparseGroup
from rmsjit.variables import Variable

Group = DenseGroup | SparseGroup


class Layout:
    """The groups of a list of variables.

    Parameters
    ----------
    rounds : sequence of sequence of Group
        See `rounds_of`.

    Attributes
    ----------
    rounds : sequence of sequence of Group
        In the order of their updates; constraints are applied after each round.
    groups : list of Group
        Those of all rounds.
    dense : list of DenseGroup
    sparse : list of SparseGroup
    dense_nbytes : int
        How many bytes the updates of dense groups write.
    computing : set of str
        The dtypes of the arithmetic.
    complex_dtype : str
        The dtype of a complex variable, empty if there is none.
    has_copies : bool
        Whether a dense variable is updated through a contiguous copy.
    """

    def __init__(self, rounds: Sequence[Sequence[Group]]) -> None:
        self.rounds = rounds
        self.groups = [group for groups in rounds for group in groups]
        self.dense = [group for group in self.groups if isinstance(group, DenseGroup)]
        self.sparse = [group for group in self.groups if isinstance(group, SparseGroup)]
        self.dense_nbytes = sum(group.nbytes for group in self.dense)
        self.computing = {group.kinds.computing for group in self.groups}
        complex_names = [g.precision.name for g in self.groups if g.precision.components == 2]
        self.complex_dtype = complex_names[0] if complex_names else ""
        self.has_copies = any(group.copied for group in self.dense)


def rounds_of(
    variables: Sequence[Any],
    kinds: Sequence[type],
    members: Sequence[Member | None],
    constrained: Collection[int],
    form: Form,
    assignment: Assignment,
) -> list[list[Group]]:
    """The groups of each round: for each turn, one for each dtype and each sparse gradient.

    Variables that are frozen are in none.

    All turns are one round, unless a variable with a constraint occurs several times: then each
    turn is a round, because the constraint is applied between the updates.
    """
    turns = turns_of(members)
    together: dict[tuple[int, Any], list[int]] = {}
    for position, member in enumerate(members):
        if member is not None and position not in assignment.frozen:
            entry = member.entry
            alike = entry.precision.name, form.is_packed and entry.is_small
            sort = position if is_sparse(kinds[position]) else alike
            together.setdefault((turns[position], sort), []).append(position)
    by_turn: list[list[Group]] = [[] for _ in range(max(turns, default=0) + 1)]
    for (turn, sort), positions in together.items():
        found = [member for member in map(members.__getitem__, positions) if member]
        if isinstance(sort, int):
            row = int(assignment.rows[sort])
            by_turn[turn].append(SparseGroup(sort, variables[sort], found[0], form, row))
        else:
            by_turn[turn].append(DenseGroup(positions, found, form, assignment.rows[positions]))
    keys = [member.entry.key for k in constrained if (member := members[k])]
    if len(set(keys)) < len(keys):
        return by_turn
    return [[group for groups in by_turn for group in groups]]


def constrain(groups: Sequence[Group], constrained: Mapping[int, Variable]) -> None:
    """Apply the constraints to the variables of some groups, after their update."""
    for group in groups:
        for position in np.atleast_1d(group.positions).tolist():
            variable = constrained.get(position)
            if variable is not None and variable.constraint is not None:
                variable.assign(variable.constraint(variable.array))
