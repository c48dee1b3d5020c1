"""Forgetting variables, and moving their state to other memory, at the user's request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import as_stored, record_length
from rmsjit.arrays.layout import array_key, layout_of, rows_key
from rmsjit.arrays.overlap import Overlaps, refuse_overlap
from rmsjit.state.entries import Entry
from rmsjit.state.making import memory_for
from rmsjit.state.slot_variables import slot_seen_as
from rmsjit.state.slots import SlotStore
from rmsjit.steps.pairs import check_variable, naming
from rmsjit.variables import array_of

CatchUp = Callable[[Entry], None]


def forget(store: SlotStore, variable: Any) -> None:
    """Drop a variable, and all others on the same memory if that was resized.

    Raises
    ------
    KeyError
        If it is not known.
    """
    with store.lock.lock:
        entry = store.named(variable)
        gone = [
            other
            for other in (store.entries.values() if entry.is_gone else ())
            if other.ground.root == entry.ground.root
        ]
        store.drop([entry, *gone])


def rebind(store: SlotStore, old: Any, new: Any, catch_up: CatchUp) -> None:
    """Move the state of variables to other memory; see `Optimizer.rebind`."""
    with store.lock.lock:
        moves = _moves(store, old, new)
        for position, move in enumerate(moves):
            _check_alike(move, position)
        changes = [(entry, store.memories.moved(entry, to, view)) for entry, view, to in moves]
        for (entry, view, _), (_, moved) in zip(moves, changes, strict=True):
            _move_clock(entry, view, moved)
        _exchange(store, changes)
        for _, moved in changes:
            catch_up(moved)


class _Move(NamedTuple):
    """A variable whose state moves.

    Attributes
    ----------
    entry : Entry
    view : ndarray
        The variable with the axes that the caller knows.
    to : object
        The new variable, whose axes are the same.
    """

    entry: Entry
    view: NDArray[Any]
    to: Any


def _moves(store: SlotStore, old: Any, new: Any) -> list[_Move]:
    if new is not None:
        return [_move(store, old, new)]
    if isinstance(old, Mapping):
        return [_move(store, name, variable) for name, variable in old.items()]
    if not isinstance(old, (list, tuple)):
        raise TypeError(f"rebind needs a new variable, or a dict or list of them, got {old!r}")
    entries = list(store.entries.values())
    if len(entries) != len(old):
        names = ", ".join(entry.name for entry in entries[:20])
        raise ValueError(
            f"rebind needs a variable for each of the {len(entries)} that are known ({names}), "
            f"got {len(old)}"
        )
    return [_Move(entry, entry.owner, to) for entry, to in zip(entries, old, strict=True)]


def _move(store: SlotStore, old: Any, new: Any) -> _Move:
    entry = store.named(old)
    return _Move(entry, _view_of(entry, old), new)


def _view_of(entry: Entry, given: Any) -> NDArray[Any]:
    """The view of a variable that was given; the first one that was seen for a name."""
    array = array_of(given)
    is_view = isinstance(array, np.ndarray) and array_key(array) == entry.key
    return array if is_view else entry.owner


def _check_alike(move: _Move, position: int) -> None:
    entry, view, variable = move
    check_variable(variable, position)
    array = array_of(variable)
    if array.shape != view.shape or array.dtype != entry.canonical.dtype:
        raise ValueError(
            f"{naming(variable, position)} must have shape {view.shape} and dtype "
            f"{entry.canonical.dtype} of {entry.name}, got {array.shape} and {array.dtype}"
        )


def _move_clock(entry: Entry, view: NDArray[Any], moved: Entry) -> None:
    """Let rows that missed steps catch up in the new memory, which has copies of them."""
    if entry.clock is not None and _has_missed_steps(entry, view):
        moved.clock = copy.copy(entry.clock)
        moved.clock.rows_key = rows_key(moved.owner)


def _has_missed_steps(entry: Entry, view: NDArray[Any]) -> bool:
    """Whether rows of a table may have to catch up; an error if they are those of another view."""
    if entry.clock is None or entry.clock.now == 0:
        return False
    if not view.ndim or entry.clock.rows_key != rows_key(view):
        raise ValueError(
            f"{entry.name} has rows that missed steps in another view, of shape "
            f"{entry.table.shape}: sync it first"
        )
    return True


def _exchange(store: SlotStore, changes: list[tuple[Entry, Entry]]) -> None:
    """Replace entries of the store by others."""
    old = {entry.key for entry, _ in changes}
    new = {moved.key: moved for _, moved in changes}
    if len(new) < len(changes):
        raise ValueError("rebind needs different memory for each variable")
    others = [e for key, e in store.entries.items() if key not in old and key not in new]

    def name(entry: Entry) -> str:
        return f"the variable {entry.name}"

    refuse_overlap(Overlaps(e for e in others if not e.is_gone), new.values(), name)
    dropped: dict[Any, Entry | None] = {key: None for key in new if key in store.entries}
    store.replace({**dropped, **{entry.key: moved for entry, moved in changes}})


def resize_rows(store: SlotStore, old: Any, new: Any, epsilon: float, catch_up: CatchUp) -> None:
    """Keep the slots of a table's rows; see `Optimizer.resize_rows`."""
    with store.lock.lock:
        entry = store.named(old)
        view, table = _view_of(entry, old), old if new is None else new
        _check_rows(entry, view, table)
        resized = _with_rows(store, entry, view, table, epsilon)
        _catch_up_rows(entry, view, resized, catch_up)
        _exchange(store, [(entry, resized)])


def _check_rows(entry: Entry, view: NDArray[Any], table: Any) -> None:
    if isinstance(table, str):
        raise TypeError(f"resize_rows needs the table itself, got only its name {table!r}")
    check_variable(table, 0)
    array = array_of(table)
    fits = array.ndim == view.ndim > 0 and array.shape[1:] == view.shape[1:]
    if not fits or array.dtype != entry.canonical.dtype:
        raise ValueError(
            f"{naming(table, 0)} must have rows of shape {view.shape[1:]} and dtype "
            f"{entry.canonical.dtype} of {entry.name}, got {array.shape} and {array.dtype}"
        )


def _with_rows(
    store: SlotStore, entry: Entry, view: NDArray[Any], table: Any, epsilon: float
) -> Entry:
    """An entry for a table with more or fewer rows; rows that stay keep their slots."""
    resized = Entry(table, entry.precision)
    resized.follow(entry)
    resized.record_length = record_length(resized.shape, resized.layout)
    kept = min(view.shape[0], resized.shape[0])
    slots = {slot.name: slot for slot in store.slots_of(resized)}
    for slot in entry.slots:
        former = slot_seen_as(store.name, entry, slot, layout_of(view), view.shape).array
        value = np.empty(resized.shape, former.dtype)
        value[...] = store.form.slot(slot).first_values(epsilon, resized.owner)
        value[:kept] = former[:kept]
        memory = memory_for(store, resized, slots[slot])
        values = resized.layout.canonical(value).reshape(-1)
        memory[...] = as_stored(memory, values, value.size)
        resized.slots[slot] = memory
    return resized


def _catch_up_rows(entry: Entry, view: NDArray[Any], resized: Entry, catch_up: CatchUp) -> None:
    """Let the rows of the resized table catch up with the steps that they missed."""
    clock = entry.clock
    if clock is None or not _has_missed_steps(entry, view):
        return
    rows = clock.resized(resized.shape[0])
    rows.rows_key = rows_key(resized.owner)
    resized.clock = rows
    catch_up(resized)
    resized.clock = None
