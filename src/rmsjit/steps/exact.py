"""``sparse="exact"``: rows catch up with the steps whose gradients did not name them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.owners import private_view
from rmsjit.indexed_slices import as_integers, check_rows
from rmsjit.rule.form import Form
from rmsjit.state.clock import Clock
from rmsjit.state.entries import Entry, Member
from rmsjit.state.slots import SlotStore
from rmsjit.steps.act import Act, Call
from rmsjit.steps.pairs import naming
from rmsjit.steps.running import Runner
from rmsjit.steps.sparse import SparseGroup, Table, reset_call
from rmsjit.variables import array_of

_runner = Runner("catch up")
_ROWS_AT_ONCE = 1 << 14  # that are copied from a table whose rows are not contiguous


def refuse_other_views(groups: Sequence[SparseGroup]) -> None:
    """Raise `ValueError` if one step has sparse gradients for two views of a table."""
    first: dict[int, SparseGroup] = {}
    for group in groups:
        other = first.setdefault(id(group.entry), group)
        if other.table.rows_key != group.table.rows_key:
            names = [naming(one.variable, one.position) for one in (group, other)]
            raise ValueError(
                f'{names[0]} must have the rows of {names[1]} with sparse="exact", since both are '
                f"views of one table: shapes {array_of(group.variable).shape} and "
                f"{array_of(other.variable).shape}"
            )


def settled(groups: Sequence[SparseGroup], store: SlotStore, limit: int) -> bool:
    """Start the clocks that are missing, and reset those that are full or count other rows.

    Returns
    -------
    bool
        False if a table that was known got a new clock: then plans must be made again.
    """
    ticks = Counter(id(group.entry) for group in groups)
    fine = True
    for group in groups:
        entry, steps = group.entry, ticks[id(group.entry)]
        if entry.clock is not None and not _can_count(entry.clock, group, steps):
            catch_up(entry, store.form, None, limit)  # which resets the clock
        if entry.clock is None or not _can_count(entry.clock, group, steps):
            entry.clock = Clock(group.table.rows, group.table.rows_key, steps)
            entry.table = private_view(array_of(group.variable))
            fine = fine and entry.key not in store.entries
    if not fine:
        store.changed()
    return fine


def _can_count(clock: Clock, group: SparseGroup, steps: int) -> bool:
    return clock.rows_key == group.table.rows_key and clock.has_room(steps)


def settling_calls(members: Sequence[Member], form: Form, bins: int) -> list[Call]:
    """The calls that bring tables up to date before a dense gradient updates all their rows."""
    calls: list[Call] = []
    for member in members:
        clock = member.entry.clock
        if clock is not None:
            table = _table_of(member, form)
            calls += [*table.catch_up_calls(clock, None, bins), reset_call(clock)]
    return calls


def catch_up(entry: Entry, form: Form, rows: NDArray[np.int64] | None, limit: int) -> None:
    """Bring some rows of a table, or all of it, to the last step of its clock.

    Parameters
    ----------
    entry : Entry
    form : Form
    rows : int64 array or None
        Without duplicates; None for all.
    limit : int
        The most threads.
    """
    clock = entry.clock
    if clock is None or clock.now == 0:
        return
    table = _table_of(Member(entry, entry.slots), form)
    pieces = [None] if rows is None and table.in_place else _behind(clock, rows)
    for piece in pieces:
        count = table.rows if piece is None else len(piece)
        nbytes = table.bytes_of(count)
        calls = functools.partial(table.catch_up_calls, clock, piece)
        _runner.run(calls, nbytes, limit)
    if rows is None:
        Act([reset_call(clock)]).run()


def _behind(clock: Clock, rows: NDArray[np.int64] | None) -> Iterator[NDArray[np.int64]]:
    """Those of some rows, or of all in pieces, that have missed steps."""
    if rows is not None:
        yield rows[clock.done[rows] != clock.now]
        return
    for start in range(0, len(clock.done), _ROWS_AT_ONCE):
        yield start + np.flatnonzero(clock.done[start : start + _ROWS_AT_ONCE] != clock.now)


def _table_of(member: Member, form: Form) -> Table:
    # If momentum has just been switched on, its slot does not exist yet.
    slots = tuple(slot for slot in form.slots if slot.name in member.slots)
    return Table(member.entry.table, member, replace(form, slots=slots))


def checked_rows(indices: Any, variable: Any) -> NDArray[np.int64] | None:
    """Indices of rows, sorted and without duplicates; None for all.

    Raises
    ------
    TypeError
        If the indices are not integers.
    ValueError
        If the variable has no rows.
    IndexError
        If one is out of range.
    """
    if indices is None:
        return None
    if not array_of(variable).ndim:
        raise ValueError(f"indices must be left out for a variable without rows, got {indices!r}")
    rows = as_integers(indices)
    check_rows(rows, len(array_of(variable)))
    return np.unique(rows).astype(np.int64)
