"""A round of gradient accumulation in a checkpoint: the sums that wait for the next step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rmsjit.arrays.layout import Key
from rmsjit.checkpoints.array_file import read_arrays
from rmsjit.checkpoints.content import Checkpoint, SavedRound, SavedWeight, decoded
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizers.accumulator import Accumulator, Round
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.optimizers.sums import dtype_of_sum
from rmsjit.state.entries import Entry, key_of
from rmsjit.variables import array_of

GRADIENT, ROWS = "gradient", "rows"


def _round_of(optimizer: Optimizer) -> tuple[Accumulator, Round] | None:
    """The accumulator of an optimizer and its round, None without any calls."""
    if not isinstance(optimizer, RMSprop) or optimizer._accumulator is None:
        return None
    current = optimizer._accumulator.current(int(optimizer.iterations))
    return (optimizer._accumulator, current) if current.calls else None


def summed_variables(optimizer: Optimizer) -> dict[Key, Entry]:
    """The variables that have a sum."""
    found = _round_of(optimizer)
    if found is None:
        return {}
    accumulator, current = found
    return {entry.key: entry for entry in accumulator.entries_of(current).values()}


def saved_round(optimizer: Optimizer, variables: Mapping[str, Any]) -> SavedRound | None:
    """The sums of an optimizer; every variable that has one must be among `variables`."""
    found = _round_of(optimizer)
    if found is None:
        return None
    _, current = found
    named = {key_of(v): name for name, v in reversed(list(variables.items()))}
    sums = []
    for key, entry in summed_variables(optimizer).items():
        name = named[key]
        gradient = current.summed[entry.name].at(entry).for_view(array_of(variables[name]))
        if isinstance(gradient, IndexedSlices):
            sums.append(SavedWeight(name, GRADIENT, gradient.values))
            sums.append(SavedWeight(name, ROWS, gradient.indices))
        else:
            sums.append(SavedWeight(name, GRADIENT, gradient))
    return SavedRound(current.calls, sums)


def restore_round(
    checkpoint: Checkpoint, optimizer: Optimizer, variables: Mapping[str, Any]
) -> None:
    """Continue with the saved round; `round_differences` must have found that it fits."""
    if not isinstance(optimizer, RMSprop) or optimizer._accumulator is None:
        return
    saved = checkpoint.accumulated
    if saved is None:
        optimizer._accumulator.clear()
        return
    gradients = {one.variable: one.value for one in saved.sums if one.name == GRADIENT}
    rows = {one.variable: one.value for one in saved.sums if one.name == ROWS}
    sums = [
        (variables[name], IndexedSlices(value, rows[name]) if name in rows else value)
        for name, value in gradients.items()
        if name is not None
    ]
    optimizer._accumulator.restore(int(optimizer.iterations), saved.calls, sums)


def round_differences(
    checkpoint: Checkpoint, optimizer: Optimizer, variables: Mapping[str, Any]
) -> Iterator[str]:
    """The reasons why the saved round can't be restored into an optimizer."""
    saved = checkpoint.accumulated
    if saved is None:
        return
    if not isinstance(optimizer, RMSprop) or optimizer._accumulator is None:
        yield (
            f"gradient accumulation: {saved.calls} calls were saved that wait for a step, here "
            f"there is no gradient_accumulation_steps"
        )
    shapes = {(one.variable, one.name): one for one in saved.sums}
    for one in saved.sums:
        if one.variable is not None and one.variable in variables:
            table = array_of(variables[one.variable])
            rows = shapes.get((one.variable, ROWS))
            yield from _sum_difference(one, table, None if rows is None else rows.value)
    for variable, name in shapes:
        if name == ROWS and (variable, GRADIENT) not in shapes:
            yield f"sum of {variable!r}: rows were saved without a gradient"


def check_no_round(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if a file has a round, which no rank of several can go on with."""
    saved = decoded(*read_arrays(path)).accumulated
    if saved is not None:
        raise ValueError(
            f"{path} was saved in the middle of a round of gradient accumulation, after "
            f"{saved.calls} calls: only one process can go on with it"
        )


def _sum_difference(saved: SavedWeight, table: Any, rows: Any) -> Iterator[str]:
    title, value = f"{saved.name} in the sum of {saved.variable!r}", saved.value
    shape, dtype = table.shape, dtype_of_sum(table.dtype)
    if rows is not None:
        if rows.ndim != 1 or table.ndim == 0:
            yield f"{title}: saved for rows {rows.shape}, here a variable of shape {shape}"
            return
        shape = (len(rows), *shape[1:])
    if saved.name == ROWS:
        shape, dtype = shape[:1], np.dtype(np.int64)
    if value.shape != shape or value.dtype != dtype:
        yield f"{title}: saved {value.dtype} {value.shape}, here {dtype} {shape}"
    elif saved.name == ROWS and value.size and not 0 <= value.min() <= value.max() < len(table):
        yield f"{title}: saved rows up to {value.max()}, here there are {len(table)}"
