"""Averages and rounds of gradient accumulation in Keras 3, beside the slots of its rule.

Keras has a dense sum of gradients for each variable, all zeros at the start of a round, and counts
calls.  Here a round has sums of those variables only that had a gradient, and steps are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.checkpoints.compare import Variables
from rmsjit.checkpoints.content import SavedRound, SavedWeight
from rmsjit.checkpoints.rounds import GRADIENT, ROWS
from rmsjit.exchange.state import State
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.sums import dtype_of_sum
from rmsjit.rule.form import Form
from rmsjit.rule.slot import AVERAGE, MG, MOMENTUM, RMS
from rmsjit.variables import array_of

Place = tuple[str, str]  # a slot, or `GRADIENT`, and the name of a variable

# What Keras calls them, in the order in which it creates them.
TITLES = {
    AVERAGE.name: "average",
    GRADIENT: "gradient_accumulator",
    RMS.name: "velocity",
    MOMENTUM.name: "momentum",
    MG.name: "average_gradient",
}


def calls_per_step(optimizer: Optimizer) -> int:
    """How many calls make a step."""
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def refuse_other_rounds(config: Mapping[str, Any], library: str, optimizer: Optimizer) -> None:
    """Raise `ValueError` unless both accumulate in the same way."""
    here, there = calls_per_step(optimizer), config.get("gradient_accumulation_steps") or 1
    if here != there:
        raise ValueError(
            f"gradient_accumulation_steps must be the same, got {here} here and {there} in "
            f"{library}"
        )
    if here == 1:
        return
    reduction = getattr(optimizer, "gradient_accumulation_reduction", "mean")
    if reduction != "mean":
        raise ValueError(f"{library} takes the mean of gradients, and here it is the {reduction}")
    if config.get("use_ema"):
        raise ValueError(
            f"{library} moves averages at every call, and rmsjit at every step, so with "
            f"gradient_accumulation_steps the averages would change"
        )


def places_of(form: Form, optimizer: Optimizer, variables: Variables) -> list[Place]:
    """All that Keras has a variable for, in its order."""
    held = {*form.slot_names, *([GRADIENT] if calls_per_step(optimizer) > 1 else [])}
    return [(slot, name) for slot in TITLES if slot in held for name in variables]


def state_from(
    values: Mapping[Place, NDArray[Any]], count: int, optimizer: Optimizer, variables: Variables
) -> State:
    """The state that Keras's variables and its count of calls stand for."""
    slots: dict[str, dict[str, NDArray[Any]]] = {}
    for (slot, name), value in values.items():
        if slot != GRADIENT:
            slots.setdefault(slot, {})[name] = value
    steps, calls = divmod(count, calls_per_step(optimizer))
    if not calls:
        return State(slots, steps)
    sums = []
    for name, variable in variables.items():
        total = values[GRADIENT, name]
        if total.any():  # Keras has zeros for a variable without a gradient
            dtype = dtype_of_sum(array_of(variable).dtype)
            sums.append(SavedWeight(name, GRADIENT, total.astype(dtype)))
    return State(slots, steps, SavedRound(calls, sums))


def values_and_count(
    state: State, places: Sequence[Place], optimizer: Optimizer, variables: Variables
) -> tuple[dict[Place, NDArray[Any]], int]:
    """The values of Keras's variables, and its count of calls."""
    sums = {} if state.accumulated is None else _dense_sums(state.accumulated, variables)
    values = {
        (slot, name): sums.get(name, np.zeros_like(array_of(variables[name]), subok=False))
        if slot == GRADIENT
        else state.slots[slot][name]
        for slot, name in places
    }
    calls = 0 if state.accumulated is None else state.accumulated.calls
    return values, (state.iterations or 0) * calls_per_step(optimizer) + calls


def _dense_sums(saved: SavedRound, variables: Variables) -> dict[str, NDArray[Any]]:
    """The sum of each variable that has one, as an array of its shape."""
    rows = {one.variable: one.value for one in saved.sums if one.name == ROWS}
    sums = {one.variable: one.value for one in saved.sums if one.name == GRADIENT}
    dense: dict[str, NDArray[Any]] = {}
    for name, total in sums.items():
        assert name is not None
        dense[name] = total
        if name in rows:  # each once
            dense[name] = np.zeros(array_of(variables[name]).shape, total.dtype)
            dense[name][rows[name]] = total
    return dense
