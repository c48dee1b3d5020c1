"""Which variables of a list are updated together, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rmsjit.rule.form import Form
from rmsjit.state.grouping import Assignment
from rmsjit.state.slots import Member
from rmsjit.steps.dense import DenseGroup
from rmsjit.steps.pairs import is_sparse
from rmsjit.steps.place import turns_of
from rmsjit.steps.sparse import SparseGroup

Group = DenseGroup | SparseGroup


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
