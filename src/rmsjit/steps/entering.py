"""Entering variables into the store: check them, then find or make their entries and slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import LEAST_ROW, row_width
from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import layout_of
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.entries import Entry, SlotMemory
from rmsjit.state.making import missing_slots
from rmsjit.state.slots import SlotStore
from rmsjit.steps.pairs import check_is_array, check_variable, is_sparse, naming


def entries_of(
    store: SlotStore, variables: Sequence[Any], kinds: Sequence[type]
) -> list[Entry | None]:
    """The entries of the variables of a step; see `known_or_new`."""
    entries = known_or_new(store, variables, kinds)
    for entry in entries:
        if entry is not None and entry.slots:
            entry.met_again = True
    store.grouping.number(filter(None, entries), store.entries.values())
    return entries


def known_or_new(
    store: SlotStore, variables: Sequence[Any], kinds: Sequence[type]
) -> list[Entry | None]:
    """An entry for every variable with a gradient, None for the others; enters nothing.

    Parameters
    ----------
    store : SlotStore
    variables : sequence
    kinds : sequence of type
        The types of their gradients.

    Raises
    ------
    TypeError, ValueError
        If a variable can't be trained, or a new one overlaps another in memory.
    """
    entries: list[Entry | None] = []
    new: dict[Any, Entry] = {}
    for position, (variable, kind) in enumerate(zip(variables, kinds, strict=True)):
        if kind is type(None):
            check_is_array(variable, position)
            entries.append(None)
            continue
        precision = check_variable(variable, position)
        _check_slots(store.form, precision, variable, position)
        made = Entry(variable, precision)
        known = store.known(made, naming(variable, position))
        if is_sparse(kind) and store.form.is_packed:
            length = made.record_length if known is None else known.record_length
            check_rows(made.owner, length, naming(variable, position))
        if known is not None:
            known.saw(variable)
        entries.append(known or new.setdefault(made.key, made))

    def name(memory: Any) -> str:
        if memory in entries:
            position = entries.index(memory)
            return naming(variables[position], position)
        if isinstance(memory, SlotMemory):
            return f"the slot {memory.name} of an earlier step"
        return f"the variable {memory.name} of an earlier step"

    if new:
        store.refuse_overlap(new.values(), name)
    return entries


def _check_slots(form: Form, precision: Precision, variable: Any, position: int) -> None:
    """Raise `TypeError` for a complex variable if a slot has a dtype of its own."""
    if precision.components == 2:
        for slot in form.of_variables(half=False).slots:
            if slot.dtype is not None:
                raise TypeError(
                    f"{naming(variable, position)} must be real, since the slot {slot.name!r} has "
                    f"the dtype {slot.dtype}, got {precision.name}"
                )


def check_rows(table: NDArray[Any], length: int, name: str) -> None:
    """Raise `ValueError` for a sparse gradient if rows share a block of slots in 8 bits.

    The records of the slots have `length` elements, which suits the shape in which the variable was
    seen first; 0 if it has none.
    """
    if not length or row_width(table.shape, layout_of(table)) == length:
        return
    raise ValueError(
        f'{name} can\'t have a sparse gradient with state_dtype="8bit", which supports them for '
        f"tables in C order with rows of at least {LEAST_ROW} elements, as at the first step, got "
        f'shape {table.shape} and strides {table.strides}: use state_dtype="bfloat16"'
    )


def first_epsilon(form: Form, hyperparameters: Hyperparameters) -> float:
    """Epsilon, if a slot starts from it; otherwise any number will do."""
    return hyperparameters.now("epsilon") if form.starts_from_epsilon else 0.0


def build(
    store: SlotStore,
    variables: Sequence[Any],
    hyperparameters: Hyperparameters,
    record_lengths: Sequence[int] | None = None,
) -> None:
    """Create the slots of `variables` without a step and without importing Numba.

    `record_lengths` are those of slots in 8 bits, where variables are parts of larger ones.
    """
    with store.lock.lock:
        if store.sweeps.are_due(store):
            store.sweeps.sweep(store)
        entries = entries_of(store, variables, [np.ndarray] * len(variables))
        known = [entry for entry in entries if entry is not None]
        if record_lengths is not None:
            for entry, length in zip(known, record_lengths, strict=True):
                entry.record_length = length
        store.enter(known, missing_slots(store, known, first_epsilon(store.form, hyperparameters)))
